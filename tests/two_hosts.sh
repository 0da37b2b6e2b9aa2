#!/bin/bash
# Two machines, as two network namespaces with names of their own, two processes on each: they train as one process does, and notice
# when the cable is cut. Needs root and iproute2:  tests/two_hosts.sh PROGRAM FOLDER
set -euo pipefail
program=$(realpath "$1"); folder=$2
. "$(dirname "$0")/namespaces.sh" ddpm 10.99.0
rm -rf "$folder" && mkdir -p "$folder" && cd "$folder"
export RAYON_NUM_THREADS=1 DDPM_IP_SILENCE=3

# four WORDS...: starts four processes, two on each machine.
four() {
    for rank in 0 1 2 3; do
        host=$([ $rank -lt 2 ] && echo a || echo b)
        RANK=$rank WORLD_SIZE=4 LOCAL_RANK=$((rank % 2)) LOCAL_WORLD_SIZE=2 MASTER_ADDR=10.99.0.1 MASTER_PORT=5000 \
            on $host "$program" "$@" >$rank.txt 2>&1 &
    done
}

words="train --preset digits --microbatch 16 --grid-images 0"
four $words --steps 20 --out two
wait
"$program" $words --steps 20 --out one --quiet >/dev/null
for run in one two; do
    # The parameters, behind a header with the time.
    python3 -c 'import sys; b = open(sys.argv[1], "rb").read(); sys.stdout.buffer.write(b[8 + int.from_bytes(b[:8], "little"):])' \
        $run/checkpoints/step_000020/model.safetensors >$run.parameters
done
cmp one.parameters two.parameters

four $words --steps 1000000 --save-interval 5 --keep-checkpoints 2 --out cut
until [ -d cut/checkpoints/step_000010 ]; do sleep 0.2; done
ip -n ddpm-a link set ddpm-va down
# Each ends by itself, and says whom it misses.
wait
for rank in 0 1 2 3; do grep -q "^rank $rank on host-[ab]: error: rank [0-3] on host-[ab]: " $rank.txt; done
"$program" info --verify cut | grep -q "^ok"

#!/bin/bash
# What a link between two machines costs, as docs/clusters.md has it:  docs/link.sh PROGRAM FOLDER RATE [WORDS...]
# Trains cifar10's network on random images in two processes of one thread, on two network namespaces whose link tbf slows down to RATE, as
# in 1gbit (`none`: not at all), and prints the seconds of a step. WORDS are for `train`. Needs root, iproute2 and NumPy.
set -euo pipefail
program=$(realpath "$1") folder=$2 rate=$3; shift 3
. "$(dirname "$0")/../tests/namespaces.sh" link 10.98.0
rm -rf "$folder" && mkdir -p "$folder" && cd "$folder"
for side in a b; do
    [ "$rate" = none ] || ip netns exec link-$side tc qdisc add dev link-v$side root tbf rate "$rate" burst 1mb latency 100ms
done
python3 -c 'import numpy as n; n.savez("images.npz", arr_0=n.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=n.uint8))'
export RAYON_NUM_THREADS=1 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=10.98.0.1 MASTER_PORT=5000
for rank in 0 1; do
    side=$([ $rank = 0 ] && echo a || echo b)
    RANK=$rank on $side "$program" train --preset cifar10 --data-dir images.npz --batch-size 8 --microbatch 4 --steps 8 --grid-images 0 \
        --save-interval 0 --log-interval 1 --out run --quiet "$@" >$rank.txt 2>&1 &
    processes[rank]=$!
done
wait "${processes[@]}"
# The first two steps prepare.
python3 -c 'import json, statistics as s; t = [8 / json.loads(l)["images_per_sec"] for l in open("run/stats.jsonl")][2:]
print(f"{s.median(t):.2f} s a step ({min(t):.2f} to {max(t):.2f}, {len(t)} steps)")'

#!/bin/bash
# One GPU, everything in one go: bench/gpu.sh PROGRAM OUT [STAGE...]
#   stages: check first fashion cifar10 lsun64 ffhq128 (all if none is said)
# PROGRAM is the built ddpm-ip. PyTorch's figures come from bench/peer_gpu.py, which needs a python3 with PyTorch and NumPy; MODES says
# which of its forms are timed on cifar10 (eager compile graph). FASHION is a folder with Fashion-MNIST, for the stage fashion.
# Each stage prints its result at once and leaves files in OUT. It begins nothing new after seven minutes.
program=$(realpath "$1"); out=$(mkdir -p "$2" && realpath "$2"); shift 2
stages=" ${*:-check first fashion cifar10 lsun64 ffhq128} "; modes=${MODES:-eager compile graph}
here=$(dirname "$(realpath "$0")"); go=$(mktemp -d)
wanted() { [[ $stages == *" $1 "* ]] && [ $SECONDS -lt 420 ]; }
say() { echo "[$SECONDS s] $*"; }
ours() { # ours NAME FLAGS...
    "$program" bench --device cuda:0 --precision bf16 --quiet --json "${@:2}" > "$out/$1.json" || return
    say "ddpm-ip $1: $(python3 - "$out/$1.json" <<'P'
import json, sys
r = json.load(open(sys.argv[1]))
for k in ("train", "sample"):
    if r[k]:
        v, s = sorted(r[k]["images_per_sec"]), r[k]
        share = 100 * s["step_flop"] / s["step_secs"] / r["peak_flop_per_sec"]
        print("%.0f images/s (%.0f to %.0f), %.2f GiB, %.0f %% of %.0f TFLOP/s" % (r[k + "_images_per_sec"], v[0], v[-1], r["peak_memory_bytes"] / 2**30, share, r["peak_flop_per_sec"] / 1e12))
P
    )"
}
declare -A peers
# A peer compiles beside everything else, and waits for a file before it times.
peer() { GO=$go/$1 timeout 460 python3 "$here/peer_gpu.py" net "${@:2}" > "$out/peer-$1.txt" 2>&1 & peers[$1]=$!; }
timed() { touch "$go/$1"; wait "${peers[$1]}"; say "PyTorch $1: $(tail -n 1 "$out/peer-$1.txt")"; }
if wanted cifar10; then
    for mode in $modes; do peer "train-$mode" cifar10 128 "$mode" train; done
    peer sample-graph cifar10 256 graph sample
fi
wanted lsun64 && peer lsun64-compile lsun64 64 compile train
if wanted check; then "$program" check --device cuda:0 > "$out/check.txt"; say "check: $(tail -n 1 "$out/check.txt")"; fi
if wanted first; then
    python3 -c "import numpy; numpy.savez('$out/noise.npz', numpy.random.randint(0, 256, (256, 32, 32, 3), dtype='uint8'))"
    for cache in cold warm; do
        began=$(date +%s%N)
        DDPM_IP_CACHE=$out/cache "$program" train --preset cifar10 --data-dir "$out/noise.npz" --steps 1 --grid-images 0 --device cuda:0 --out "$out/first-$cache" --quiet > "$out/first.txt" 2>&1
        say "one step of cifar10 and its checkpoint, $cache cache: $((($(date +%s%N) - began) / 1000000)) ms; $(tail -n 1 "$out/first.txt")"
    done
fi
if wanted fashion; then say "$("$program" train --preset fashion-mnist --data-dir "$FASHION" --duration 60s --device cuda:0 --out "$out/fashion" --quiet 2>&1 | tail -n 4 | tr '\n' ' ')"; fi
if wanted cifar10; then
    train="--preset cifar10 --batch-size 128 --repeats 40 --only train"
    ours train $train
    for mode in $modes; do timed "train-$mode"; done
    ours train-again $train; ours train-tuned $train --tune
    ours sample --preset cifar10 --batch-size 256 --repeats 40 --only sample; timed sample-graph
fi
if wanted lsun64; then ours lsun64 --preset lsun-tower64 --batch-size 64 --repeats 12 --only train; timed lsun64-compile; fi
if wanted ffhq128; then ours ffhq128 --preset ffhq128 --batch-size 32 --repeats 8 --only train; peer ffhq128-eager ffhq128 32 eager train; timed ffhq128-eager; fi
kill $(jobs -p) 2> /dev/null; true

#!/bin/bash
# One GPU, everything in one go: bench/gpu.sh PROGRAM OUT [STAGES]; stages: check cifar10 lsun64 ffhq128 fashion (all if not said).
# PROGRAM is the built ddpm-ip; PyTorch's figures come from bench/peer_gpu.py, which needs a python3 with PyTorch. Each stage writes to
# OUT at once. FASHION names a folder with Fashion-MNIST for the last stage. It ends by itself after eight minutes.
program=$(realpath "$1"); out=$(mkdir -p "$2" && realpath "$2"); stages=" ${*:3} "; [ $# -gt 2 ] || stages=" check cifar10 lsun64 ffhq128 fashion "
here=$(dirname "$(realpath "$0")"); go=$(mktemp -d); began=$SECONDS
wanted() { [[ $stages == *" $1 "* ]] && [ $((SECONDS - began)) -lt "${2:-400}" ]; }
ours() { echo "$1: $("$program" bench --device cuda:0 --precision bf16 --quiet --json "${@:2}" | tee "$out/$1.json" | python3 -c '
import json, sys
r = json.load(sys.stdin)
for k in ("train", "sample"):
    if r[k]: v = sorted(r[k]["images_per_sec"]); print(k, "%.0f images/s (%.0f to %.0f), %.1f GiB, %.0f %% of %.0f TFLOP/s" % (r[k + "_images_per_sec"], v[0], v[-1], r["peak_memory_bytes"] / 2**30, 100 * r[k]["step_flop"] / r[k]["step_secs"] / r["peak_flop_per_sec"], r["peak_flop_per_sec"] / 1e12))')"; }
# A peer compiles beside everything, and waits for its file before it times.
peer() { GO=$go/$1 timeout 460 python3 "$here/peer_gpu.py" net "${@:2}" > "$out/peer-$1.txt" 2>&1 & peers[$1]=$!; }
timed() { touch "$go/$1"; wait "${peers[$1]}"; echo "peer $1: $(tail -n 2 "$out/peer-$1.txt" | tr '\n' ' ')"; }
declare -A peers
if wanted cifar10; then for mode in eager compile graph; do peer c10-$mode cifar10 128 $mode train; done; peer c10-sample cifar10 256 compile sample; fi
wanted lsun64 && peer lsun lsun64 64 compile train
wanted ffhq128 && peer ffhq ffhq128 32 eager train
wanted check && { time "$program" check --device cuda:0 > "$out/check.txt"; tail -n 1 "$out/check.txt"; }
wanted fashion && "$program" train --preset fashion-mnist --data-dir "$FASHION" --duration 60s --device cuda:0 --out "$out/fashion" --quiet | tee "$out/fashion.txt"
if wanted cifar10 300; then
    for round in 1 2; do ours c10-train-$round --preset cifar10 --batch-size 128 --repeats 40 --only train; [ $round = 2 ] || for mode in eager compile graph; do timed c10-$mode; done; done
    ours c10-sample-1 --preset cifar10 --batch-size 256 --repeats 40 --only sample; timed c10-sample
fi
wanted lsun64 300 && { ours lsun-train --preset lsun-tower64 --batch-size 64 --repeats 12 --only train; timed lsun; }
wanted ffhq128 && { ours ffhq-train --preset ffhq128 --batch-size 32 --repeats 8 --only train; timed ffhq; }
kill $(jobs -p) 2>/dev/null; true

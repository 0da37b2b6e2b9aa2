#!/bin/sh
# run.sh OUT [NVRTC.so]: the kernels' twins against plain loops: with fibers at all sizes, with the address and undefined sanitizers, with
# threads and the thread sanitizer, which must find a planted missing barrier; then NVRTC (PyPI's, if none is given) for each architecture.
cd "$(dirname "$0")"
out=${1:-/tmp/twins}
mkdir -p "$out"
set -e
flags="-std=c++20 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off"
build() { nice -n 5 g++ $flags "$@"; }
build -O2 -DCUDA_CPU_FIBERS test.cpp -o "$out/fibers" && "$out/fibers"
build -O1 -g -DCUDA_CPU_FIBERS -fsanitize=address,undefined -fno-sanitize-recover=all test.cpp -o "$out/address"
ASAN_OPTIONS=detect_stack_use_after_return=0 "$out/address"
build -O1 -g -DSMALL -fsanitize=thread test.cpp -o "$out/threads" && setarch -R "$out/threads"
build -O1 -g -DSMALL -DPLANTED_RACE -fsanitize=thread test.cpp -o "$out/race"
if TSAN_OPTIONS=halt_on_error=1 setarch -R "$out/race" >"$out/race.log" 2>&1; then echo "the planted race was not found"; exit 1; fi
grep -q "data race" "$out/race.log" && echo "the planted race was found"
build -O2 -DCUDA_CPU_FIBERS -shared -fPIC twins.cpp -o "$out/kernels.so"
nvrtc=$2
if [ -z "$nvrtc" ]; then
    [ -d "$out/nvidia" ] || { pip download -q --no-deps -d "$out" nvidia-cuda-nvrtc-cu12; python3 -m zipfile -e "$out"/nvidia_cuda_nvrtc*.whl "$out"; }
    nvrtc=$(echo "$out"/nvidia/*/lib/libnvrtc.so.*)
fi
nice -n 5 python3 compile.py "$nvrtc"

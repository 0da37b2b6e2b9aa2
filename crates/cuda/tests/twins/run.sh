#!/bin/sh
# run.sh OUT: the kernels' twins against plain loops: with fibers at all sizes, with the address and undefined sanitizers, with threads
# and the thread sanitizer, which must find a planted missing barrier; then attention's the same way (flash.sh). Three jobs run side by side.
cd "$(dirname "$0")"
out=${1:-/tmp/twins}
mkdir -p "$out"
set -e
build() { nice -n 5 g++ -std=c++20 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off test.cpp "$@"; }
fibers() {
    build -O2 -DCUDA_CPU_FIBERS -o "$out/fibers" && "$out/fibers"
    build -O1 -g -DSMALL -fsanitize=thread -o "$out/threads" && setarch -R "$out/threads"
    build -O1 -g -DSMALL -DPLANTED_RACE -fsanitize=thread -o "$out/race"
    if TSAN_OPTIONS=halt_on_error=1 setarch -R "$out/race" >"$out/race.log" 2>&1; then echo "the planted race was not found"; exit 1; fi
    grep -q "data race" "$out/race.log" && echo "the planted race was found"
}
address() {
    build -O1 -g1 -DCUDA_CPU_FIBERS -fsanitize=address,undefined -fno-sanitize-recover=all -o "$out/address"
    ASAN_OPTIONS=detect_stack_use_after_return=0 "$out/address"
}
# A subshell that is waited for in a condition would go on after errors.
(fibers) & fibers=$!
(address) & address=$!
./flash.sh "$out" & flash=$!
failed=0
for job in $fibers $address $flash; do wait $job || failed=1; done
exit $failed

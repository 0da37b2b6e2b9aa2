#!/bin/sh
# flash.sh OUT: attention's twins against plain loops: with fibers at all sizes, with the address and undefined sanitizers, and with threads and
# the thread sanitizer, which must find a planted missing barrier.
cd "$(dirname "$0")"
out=${1:-/tmp/twins}
mkdir -p "$out"
set -e
build() { nice -n 5 g++ -std=c++20 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off "$@"; }
build -O2 -DCUDA_CPU_FIBERS flash_test.cpp -o "$out/flash_fibers" && nice -n 5 "$out/flash_fibers"
build -O1 -g -DCUDA_CPU_FIBERS -DFEW -fsanitize=address,undefined -fno-sanitize-recover=all flash_test.cpp -o "$out/flash_address"
ASAN_OPTIONS=detect_stack_use_after_return=0 nice -n 5 "$out/flash_address"
build -O1 -g -DSMALL -fsanitize=thread flash_test.cpp -o "$out/flash_threads" && nice -n 5 setarch -R "$out/flash_threads"
build -O1 -g -DSMALL -DPLANTED_RACE -fsanitize=thread flash_test.cpp -o "$out/flash_race"
if TSAN_OPTIONS=halt_on_error=1 nice -n 5 setarch -R "$out/flash_race" >"$out/flash_race.log" 2>&1; then echo "the planted race was not found"; exit 1; fi
grep -q "data race" "$out/flash_race.log" && echo "the planted race was found"

#!/bin/sh
# Builds driver, cuDNN, cuBLASLt, NVRTC, NCCL and, where ../twins/twins.cpp is there, the kernels' twins:  ./build.sh OUT [no-twins]
# What is newer than its sources stays, and new files come into their place whole, so tests may share OUT.
# Use: LD_LIBRARY_PATH=OUT (the twins are found beside the driver).
set -e
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$here"
part=$(mktemp -d "$out/part.XXXXXX")
trap 'rm -rf "$part"' EXIT
old() { # old FILE SOURCE...: is the file missing or older than a source?
  file=$1; shift
  [ ! -e "$file" ] || [ -n "$(find "$@" build.sh -type f -newer "$file" 2>/dev/null | head -1)" ]
}
# -march=native: the machine that builds runs the tests. -Wno-restrict: GCC 12 sees a fault in its own strings.
flags="-std=c++20 -march=native -Wall -Wextra -Wno-restrict -fPIC"
compile() { old "$out/$1" $4 driver.hpp || return 0; g++ $flags $3 -c $2.cpp -o "$part/$2.o"; }
link() { [ ! -e "$part/$2.o" ] || { g++ -shared -Wl,-rpath,'$ORIGIN' -Wl,-soname,$1 "$part/$2.o" $3 -o "$part/$1" && mv "$part/$1" "$out/$1"; }; }
twins() {
  [ -e ../twins/twins.cpp ] || return 0
  old "$out/kernels.so" ../twins ../../src/kernels || return 0
  # as the GPU's code: no multiplication and addition in one step
  g++ -std=c++20 -O2 -ffp-contract=off -w -fPIC -shared -DCUDA_CPU_FIBERS ../twins/twins.cpp -o "$part/kernels.so" && mv "$part/kernels.so" "$out/kernels.so"
}
compile libcudnn.so.9 cudnn -O3 "cudnn.cpp numbers.hpp" & a=$!
(compile libcublasLt.so.13 cublaslt -O3 "cublaslt.cpp numbers.hpp"; compile libnvrtc.so.13 nvrtc -O1 nvrtc.cpp; compile libnccl.so.2 nccl -O1 nccl.cpp) & b=$!
compile libcuda.so.1 driver -O1 "driver.cpp ../twins/twin.hpp"
wait $a
wait $b
link libcuda.so.1 driver -ldl
for library in "libcudnn.so.9 cudnn" "libcublasLt.so.13 cublaslt" "libnvrtc.so.13 nvrtc" "libnccl.so.2 nccl"; do link $library "$out/libcuda.so.1"; done
for name in libcublasLt libnvrtc; do ln -sf $name.so.13 "$out/$name.so.12"; done
[ "$2" = no-twins ] || twins

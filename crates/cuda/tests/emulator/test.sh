#!/bin/sh
# Builds everything into OUT and checks it against NumPy (from PyPI where it is not there):  ./test.sh OUT
set -e
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")"
./build.sh "$out" no-twins
g++ -std=c++20 -O1 -shared -fPIC test_twins.cpp -o "$out/test_twins.so"
python=python3
if ! $python -c 'import numpy' 2>/dev/null; then
  [ -d "$out/venv" ] || { python3 -m venv "$out/venv" && "$out/venv/bin/pip" install -q numpy; }
  python=$out/venv/bin/python
fi
LD_LIBRARY_PATH=$out CUDA_ON_CPU_KERNELS=$out/test_twins.so exec $python test.py

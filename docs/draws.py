"""Digits drawn from the digits, with replacement: what a sampler of exactly their law would draw.

    python docs/draws.py NUMBER SEED OUT.npz

`ddpm-ip evaluate digits OUT.npz --metrics fid` measures how far so many images are from all digits by chance alone. Needs numpy.
"""

import gzip
import sys
from pathlib import Path

import numpy as np


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    digits = gzip.open(Path(__file__).parents[1] / "crates/ddpm-ip/assets/digits.bin.gz").read()
    levels = np.frombuffer(digits[1797:], np.uint8).reshape(-1, 8, 8, 1).astype(np.uint32)
    # As the program reads them: levels of 0 to 16 become values of 0 to 255.
    images = ((levels * 255 + 8) // 16).astype(np.uint8)
    chosen = np.random.default_rng(int(sys.argv[2])).integers(0, len(images), int(sys.argv[1]))
    np.savez(sys.argv[3], arr_0=images[chosen])


main()

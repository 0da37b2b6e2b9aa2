"""Mean and variance of samples of the digits, along their principal components.

    python docs/detail.py PLAN

PLAN is the folder that `ddpm-ip compare docs/plans/digits.toml --out PLAN` fills. Prints, for each file of samples, the mean value,
and the variance along the first ten components (coarse) and along 21 to 45 (fine), each divided by that of the digits. Needs numpy.
"""

import gzip
import sys
from pathlib import Path

import numpy as np


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    digits = gzip.open(Path(__file__).parents[1] / "crates/ddpm-ip/assets/digits.bin.gz").read()
    digits = np.frombuffer(digits[1797:], np.uint8).reshape(-1, 64) / 8 - 1
    variances, components = np.linalg.eigh(np.cov(digits.T))
    variances, components = variances[::-1], components[:, ::-1]
    print(f"digits: mean {digits.mean():.3f}")
    for path in sorted(Path(sys.argv[1], "samples").rglob("*.npz")):
        samples = np.load(path)["arr_0"].reshape(-1, 64) / 127.5 - 1
        along = ((samples - digits.mean(0)) @ components).var(0)
        coarse, fine = (along[part].sum() / variances[part].sum() for part in [slice(10), slice(20, 45)])
        print(f"{path.parent.name}/{path.name}: {len(samples)} images, mean {samples.mean():.3f}, coarse {coarse:.2f}, fine {fine:.2f}")


if __name__ == "__main__":
    main()

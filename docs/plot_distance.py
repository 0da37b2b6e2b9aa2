"""Draws the Fréchet distances of a run's evaluations: python docs/plot_distance.py runs/digits/progress.csv OUT.png.

Needs matplotlib.
"""

import csv
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

source, target = sys.argv[1:]
with open(source, newline="") as file:
    rows = list(csv.DictReader(file))
key = next(key for key in ("fid", "frechet_distance") if key in rows[0])
points = [(int(row["step"]), float(row[key])) for row in rows if row[key]]
plt.figure(figsize=(7, 2.6), dpi=110)
plt.plot(*zip(*points), "o-", color="black", markersize=3)
plt.yscale("log")
plt.xlabel("step")
plt.ylabel("Fréchet distance")
plt.grid(alpha=0.3, which="both")
plt.tight_layout()
plt.savefig(target)

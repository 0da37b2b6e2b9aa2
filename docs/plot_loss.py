"""Draws the loss of a run: python docs/plot_loss.py runs/digits/progress.csv OUT.png (needs matplotlib)."""

import csv
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

source, target = sys.argv[1:]
with open(source, newline="") as file:
    rows = list(csv.DictReader(file))
steps = [int(row["step"]) for row in rows]

plt.figure(figsize=(7, 3.2), dpi=110)
plt.plot(steps, [float(row["loss"]) for row in rows], color="black", label="loss")
for quarter in range(4):
    points = [(int(row["step"]), float(row[f"loss_q{quarter}"])) for row in rows if row.get(f"loss_q{quarter}")]
    plt.plot(*zip(*points), linewidth=0.8, label=f"t in quarter {quarter + 1}")
plt.yscale("log")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend(fontsize=8, ncol=5, loc="upper right")
plt.grid(alpha=0.3)
plt.tight_layout()
plt.savefig(target)

"""Draws the loss of a run, or of several to compare: python docs/plot_loss.py runs/digits/progress.csv [...] OUT.png.

One run is drawn with its quarters of the timesteps, several by their folders' names. Needs matplotlib.
"""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

*sources, target = sys.argv[1:]
plt.figure(figsize=(7, 3.2), dpi=110)
for source, style in zip(sources, ["-", "--", ":", "-."] * len(sources)):
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    losses = [float(row["loss"]) for row in rows]
    if len(sources) > 1:
        plt.plot(steps, losses, style, label=f"{Path(source).parent.name}, at the end {losses[-1]:.4f}")
        continue
    plt.plot(steps, losses, color="black", label="loss")
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

"""Distances of all seeds and variants of a comparison, and what a variant changes for the same seed.

    python docs/pairs.py OUT.png PLAN...

PLAN is a folder that `ddpm-ip compare` filled; several are read as one. Draws every distance, with a line between those of a seed at γ = 0 and
γ = 0.1, and prints means with standard deviations, and differences from the baseline of the same seed with 95 % intervals (Student's t).
Distances of the largest number of images count. Needs matplotlib and scipy.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from scipy.stats import t as student


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    lines = [json.loads(line) for plan in sys.argv[2:] for line in Path(plan, "results.jsonl").read_text().splitlines()]
    images = max(line["images"] for line in lines)
    found = {}
    for line in lines:
        if line["images"] == images:
            way = (line["sampler"].upper(), line["steps"])
            found.setdefault(way, {}).setdefault(line["variant"], {})[line["seed"]] = line["fid"]
    figure, axes = plt.subplots(1, len(found), figsize=(3 * len(found), 3.4), layout="constrained")
    for axis, ((sampler, steps), variants) in zip(axes, sorted(found.items()), strict=True):
        way = f"{sampler}, {steps} steps"
        order = sorted(variants, key=lambda name: (name != "baseline", "equivalent" in name, name))
        base = variants["baseline"]
        for at, name in enumerate(order):
            values = [variants[name][seed] for seed in sorted(variants[name])]
            axis.plot([at] * len(values), values, "o", ms=4, color="C0" if name == "baseline" else "C1")
            text = f"{way}, {name}: {mean(values):.3f}"
            if len(values) > 1:
                text += f" ± {stdev(values):.3f} over {len(values)} seeds"
            if name != "baseline":
                changes = [value - base[seed] for seed, value in variants[name].items() if seed in base]
                text += f", change {mean(changes):+.3f}"
                if len(changes) > 1:
                    wide = student.ppf(0.975, len(changes) - 1) * stdev(changes) / len(changes) ** 0.5
                    text += f" ± {wide:.3f} ({mean(changes) / mean(base.values()):+.0%} ± {wide / mean(base.values()):.0%})"
            print(text)
        if "0.1" in variants:
            for seed, value in variants["0.1"].items():
                axis.plot([0, order.index("0.1")], [base[seed], value], "-", lw=0.6, color="grey")
        axis.set_xticks(range(len(order)), order, rotation=60, ha="right", fontsize=8)
        axis.set_ylim(0)
        axis.set_title(way, fontsize=9)
    axes[0].set_ylabel(f"distance of {images} images")
    figure.savefig(sys.argv[1], dpi=110)


main()

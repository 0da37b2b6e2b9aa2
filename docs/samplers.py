"""Draws with every sampler, spacing and correction, and writes how far the samples are from real images.

    python docs/samplers.py DDPM_IP RUN REAL OUT [--images 10000] [--only PATTERN]

DDPM_IP is the program, RUN a checkpoint of any network that draws whole images, REAL what it was trained on, OUT a folder.
Every setting is drawn once with seed 0; what is there already is not drawn again, so the script can be stopped and goes on.
Writes OUT/distances.json (a line per setting: words of the command, network calls per image, images, distance and its parts)
and prints tables. Needs nothing but the program; `--plot samplers.png` needs matplotlib.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SAMPLERS = ["ddpm", "ddim", "dpm-solver++", "dpm-solver++-sde", "unipc", "heun"]
STEPS = [5, 10, 20, 50, 100]
SPACINGS = ["quadratic", "log-snr", "karras"]
# Drawn with 2 000 images, beside all samplers with 50 and 100 steps.
FEW = [("ddpm", 1000), ("unipc", 10), ("unipc", 20)]
CORRECTIONS = [
    "es:1.005",
    "es:1.017",
    "es-linear:0.0025,1",
    "time-shift:30,300",
    "time-shift-released:30,300",
    "shift:-10",
    "shift:10",
    "dcw:low,0.05",
    "dcw:high,0.05",
    "dcw:pixel,0.05",
    "dcw:low,-0.05",
    "ideal-ip:0.1",
]


def settings(images):
    """Name, images and flags of everything that is drawn."""
    for steps in STEPS:
        for sampler in SAMPLERS:
            yield f"{sampler} {steps}", images, ["--sampler", sampler, "--timestep-respacing", str(steps)]
    for steps in [10, 20]:
        for sampler in SAMPLERS:
            for spacing in SPACINGS:
                flags = ["--sampler", sampler, "--timestep-respacing", str(steps), "--spacing", spacing]
                yield f"{sampler} {steps} {spacing}", images, flags
        for sampler in ["ddim", "unipc"]:
            for correction in CORRECTIONS:
                if correction.startswith("time-shift-released") and sampler != "ddim":
                    continue
                flags = ["--sampler", sampler, "--timestep-respacing", str(steps), "--correct", correction]
                yield f"{sampler} {steps} {correction}", images, flags
    for sampler, steps in [*FEW, *((sampler, steps) for steps in [50, 100] for sampler in SAMPLERS)]:
        yield f"{sampler} {steps} 2000", 2000, ["--sampler", sampler, "--timestep-respacing", str(steps)]


def calls(flags):
    """Network calls of an image."""
    steps = int(flags[flags.index("--timestep-respacing") + 1])
    return 2 * steps - 1 if "heun" in flags else steps


def run(words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("run")
    parser.add_argument("real")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--only", default=".*", help="settings whose whole name this regular expression matches")
    parser.add_argument("--plot", help="also draw the distance against network calls")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "distances.json"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    size = json.loads(run([args.program, "info", args.run, "--json"]))["config"]["model"]["image_size"]
    fit = ["--image-size", size]
    for name, images, flags in settings(args.images):
        if not re.fullmatch(args.only, name) or any(k["name"] == name and k["images"] == images for k in known):
            continue
        with tempfile.TemporaryDirectory() as folder:
            samples = Path(folder) / "samples.npz"
            draw = ["sample", "--checkpoint", args.run, "--num-samples", images, "--batch-size", args.batch, "--quiet"]
            run([args.program, *draw, *flags, "--out", samples])
            found = json.loads(run([args.program, "evaluate", args.real, samples, *fit, "--metrics", "fid", "--json", "--quiet"]))
        line = {"name": name, "flags": flags, "calls": calls(flags), "images": images, "fid": found["fid"]}
        line |= found["fid_parts"] | {"brightness": found["samples"]["brightness"][0]}
        known.append(line)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name:40} {line['calls']:5} calls  {line['fid']:8.3f}", flush=True)
    table(known, args.images)
    if args.plot:
        plot(known, args.images, args.plot)


def table(known, images):
    of = {k["name"]: k["fid"] for k in known if k["images"] == images}
    cell = lambda name: f"{of[name]:.2f}" if name in of else ""
    print("\n| steps | " + " | ".join(SAMPLERS) + " |\n| --- |" + " --- |" * len(SAMPLERS))
    for steps in STEPS:
        print(f"| {steps} | " + " | ".join(cell(f"{s} {steps}") for s in SAMPLERS) + " |")
    for steps in [10, 20]:
        print(f"\n| {steps} steps | " + " | ".join(SAMPLERS) + " |\n| --- |" + " --- |" * len(SAMPLERS))
        print("| uniform | " + " | ".join(cell(f"{s} {steps}") for s in SAMPLERS) + " |")
        for spacing in SPACINGS:
            print(f"| {spacing} | " + " | ".join(cell(f"{s} {steps} {spacing}") for s in SAMPLERS) + " |")
    print("\n| correction | ddim 10 | ddim 20 | unipc 10 | unipc 20 |\n| --- | --- | --- | --- | --- |")
    columns = [(s, n) for s in ["ddim", "unipc"] for n in [10, 20]]
    print("| none | " + " | ".join(cell(f"{s} {n}") for s, n in columns) + " |")
    for correction in CORRECTIONS:
        print(f"| `{correction}` | " + " | ".join(cell(f"{s} {n} {correction}") for s, n in columns) + " |")
    few = {k["name"]: k["fid"] for k in known if k["name"].endswith(" 2000")}
    cell = lambda name: f"{few[name]:.3f}" if name in few else ""
    print("\n| 2 000 samples | " + " | ".join(SAMPLERS) + " |\n| --- |" + " --- |" * len(SAMPLERS))
    for steps in [10, 20, 50, 100, 1000]:
        print(f"| {steps} steps | " + " | ".join(cell(f"{s} {steps} 2000") for s in SAMPLERS) + " |")


def plot(known, images, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    of = {k["name"]: k for k in known if k["images"] == images}
    for sampler in SAMPLERS:
        points = [of[f"{sampler} {n}"] for n in STEPS if f"{sampler} {n}" in of]
        axes.plot([p["calls"] for p in points], [p["fid"] for p in points], marker="o", label=sampler)
    axes.set(xscale="log", yscale="log", xlabel="network calls per image", ylabel="Fréchet distance (grey network)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

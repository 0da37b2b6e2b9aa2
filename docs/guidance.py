"""Draws with guidance of several scales, and writes what becomes of class and distance.

    python docs/guidance.py DDPM_IP RUN JUDGE REAL OUT [--weak CHECKPOINT] [--images 5000]

DDPM_IP is the program, RUN a network with classes that was trained with --label-dropout, JUDGE a classifier of clean images, REAL
real images, CHECKPOINT a weaker network for autoguidance. Every setting is drawn once with seed 0, the classes in turn; what is
there already is not drawn again. Writes OUT/guidance.json (a line per setting), a grid of each, and prints the table. Needs numpy.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SCALES = [1.5, 2, 3, 5]
INTERVAL = "0.3,5"


def settings(weak):
    """Name and flags of everything that is drawn."""
    yield "none", []
    for w in SCALES:
        yield f"classifier-free, w {w}", ["--guidance-scale", w]
    for w in SCALES:
        yield f"classifier-free in {INTERVAL}, w {w}", ["--guidance-scale", w, "--guidance-interval", INTERVAL]
    for w in SCALES if weak else []:
        yield f"autoguidance, w {w}", ["--guidance-scale", w, "--guide-with", weak]


def run(words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def accuracy(program, judge, samples):
    """The share of images that the judge gives the class that they were asked to be of."""
    samples = np.load(samples)
    images, labels = samples["arr_0"], samples["arr_1"]
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "in.npz"), Path(folder, "out.npz")
        x = images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        np.savez(given, x=x, t=np.zeros(len(x), np.float32))
        run([program, "predict", "--checkpoint", judge, "--input", given, "--output", answer])
        return float((np.load(answer)["out"].argmax(1) == labels).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["program", "run", "judge", "real"]:
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weak")
    parser.add_argument("--images", type=int, default=5000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "guidance.json"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    config = json.loads(run([args.program, "info", args.run, "--json"]))["config"]
    classes = ",".join(str(i) for i in range(config["model"]["num_classes"]))
    fit = ["--image-size", config["model"]["image_size"], "--metrics", "fid,pr", "--json", "--quiet"]
    for i, (name, flags) in enumerate(settings(args.weak)):
        if any(line["name"] == name for line in known):
            continue
        with tempfile.TemporaryDirectory() as folder:
            samples = Path(folder) / "samples.npz"
            draw = ["sample", "--checkpoint", args.run, "--num-samples", args.images, "--batch-size", 250, "--classes", classes]
            draw += ["--sampler", "unipc", "--timestep-respacing", 20, "--quiet", "--overwrite"]
            run([args.program, *draw, *flags, "--out", samples, "--grid", args.out / f"{i:02}.png"])
            found = json.loads(run([args.program, "evaluate", args.real, samples, *fit]))
            right = accuracy(args.program, args.judge, samples)
        line = {"name": name, "accuracy": right, "fid": found["fid"], "evaluation": found}
        known.append(line)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name:40} {right:6.1%}  {line['fid']:8.3f}", flush=True)
    print("\n| guidance | accuracy | FD | precision | recall |\n| --- | --- | --- | --- | --- |")
    for line in known:
        found = line["evaluation"]
        print(f"| {line['name']} | {line['accuracy']:.1%} | {line['fid']:.2f} | {found['precision']:.3f} | {found['recall']:.3f} |")


if __name__ == "__main__":
    main()

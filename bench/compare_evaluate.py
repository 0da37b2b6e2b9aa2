#!/usr/bin/env python3
"""What `ddpm-ip evaluate` computes and what its peers take for it, in turn on this machine, and the ratios.

    cargo build --release
    python3 -m venv v && v/bin/pip install torch torchvision torch-fidelity numpy scipy
    v/bin/python bench/compare_evaluate.py

Inception features against torch-fidelity's network (its resize included, the same random weights at every turn, contiguous
as it runs it, and channels-last), the Fréchet distance of 2048 columns against scipy.linalg.sqrtm as pytorch-fid calls it, and
precision and recall of 10 000 rows against 10 000 against NumPy in blocks. Medians over the rounds, with their range.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
import torch_fidelity.feature_extractor_inceptionv3 as inception

ROWS, COLUMNS, NEIGHBOURS, IMAGE_SIZE = 10_000, 2048, 3, 32


class RandomWeights(inception.FeatureExtractorInceptionV3):
    """torch-fidelity's network as it is made, without the published weights, which need the network."""

    def load_state_dict(self, *_, **__):
        pass


def seconds(work) -> float:
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


def features(network, images):
    with torch.no_grad():
        network(images)


def frechet(a, b):
    """As pytorch-fid 0.3."""
    (mu1, sigma1), (mu2, sigma2) = a, b
    root = scipy.linalg.sqrtm(sigma1.dot(sigma2))
    return (mu1 - mu2) @ (mu1 - mu2) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(np.real(root))


def squares(a, b):
    return np.maximum((a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1), 0)


def radii(rows, block=2000):
    parts = [np.partition(squares(rows[i : i + block], rows), NEIGHBOURS, axis=1)[:, NEIGHBOURS] for i in range(0, ROWS, block)]
    return np.concatenate(parts)


def precision_recall(a, b, block=2000):
    (radii_a, radii_b) = radii(a), radii(b)
    precision = [(squares(b[i : i + block], a) <= radii_a).any(1) for i in range(0, ROWS, block)]
    recall = [(squares(a[i : i + block], b) <= radii_b).any(1) for i in range(0, ROWS, block)]
    return np.concatenate(precision).mean(), np.concatenate(recall).mean()


def spread(values) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(Path(__file__).parent.parent / "target/release/ddpm-ip"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="turns of the two")
    options = parser.parse_args()

    inception.load_state_dict_from_url = lambda *_, **__: None
    network = RandomWeights("inception", ["2048", "logits_unbiased"])
    last = RandomWeights("inception", ["2048", "logits_unbiased"]).to(memory_format=torch.channels_last)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (options.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8))
    sides = [rng.standard_normal((ROWS, COLUMNS), dtype=np.float32) for _ in range(2)]
    moments = [(s.mean(0).astype(np.float64), np.cov(s.astype(np.float64), rowvar=False)) for s in sides]
    for warm in (network, last):
        features(warm, images)

    names = ["features", "features_channels_last", "frechet", "precision_recall"]
    ours = {name: [] for name in names}
    theirs = {name: [] for name in names}
    for _ in range(options.rounds):
        command = [options.program, "bench", "--only", "evaluate", "--batch-size", str(options.batch_size)]
        done = subprocess.run([*command, "--repeats", "3", "--json", "--quiet"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        report = json.loads(done.stdout)
        speed = statistics.median(report["inception"]["images_per_sec"])
        ours["features"].append(speed)
        ours["features_channels_last"].append(speed)
        ours["frechet"].append(statistics.median(report["frechet_secs"]))
        ours["precision_recall"].append(statistics.median(report["precision_recall_secs"]))
        for name, chosen in [("features", network), ("features_channels_last", last)]:
            times = [seconds(lambda chosen=chosen: features(chosen, images)) for _ in range(3)]
            theirs[name].append(options.batch_size / statistics.median(times))
        theirs["frechet"].append(seconds(lambda: frechet(*moments)))
        theirs["precision_recall"].append(seconds(lambda: precision_recall(*sides)))

    print("| what | ddpm-ip | peer | ratio |")
    print("| --- | --- | --- | --- |")
    for name in names:
        mine, other = (statistics.median(side[name]) for side in (ours, theirs))
        ratio = mine / other if name.startswith("features") else other / mine
        unit = "images/s" if name.startswith("features") else "s"
        print(f"| {name}, {unit} | {spread(ours[name])} | {spread(theirs[name])} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

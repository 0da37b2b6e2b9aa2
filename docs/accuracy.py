"""How many images of an npz a classifier gives the class that the npz says.

    python docs/accuracy.py target/release/ddpm-ip CLASSIFIER SAMPLES.npz ...

CLASSIFIER is a run or checkpoint of `classifier-train`; it sees the images as they are, at t = 0. Needs numpy.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

program, classifier, *files = sys.argv[1:]
for file in files:
    samples = np.load(file)
    images, labels = samples["arr_0"], samples["arr_1"]
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "in.npz"), Path(folder, "out.npz")
        x = images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        np.savez(given, x=x, t=np.zeros(len(x), np.float32))
        command = [program, "predict", "--checkpoint", classifier, "--input", given, "--output", answer]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        right = np.load(answer)["out"].argmax(1) == labels
    print(f"{file}: {right.mean():.1%} of {len(right)} images (± {right.std() / len(right) ** 0.5:.1%})")

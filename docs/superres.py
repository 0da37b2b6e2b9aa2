"""Small images for a super-resolution model, and a sheet of what it makes of them.

    python docs/superres.py small.npz large.npz                  # Fashion-MNIST's first 50 test images, 16x16 and 32x32
    python docs/superres.py small.npz large.npz enlarged.npz sheet.png

The sheet has the small images, the enlarged ones and the originals in three rows. Needs numpy and Pillow.
"""

import gzip
import sys

import numpy as np

FOLDER = "/usr/share/datasets/fashion-mnist"


def read(name, header):
    with gzip.open(f"{FOLDER}/{name}") as file:
        return np.frombuffer(file.read(), np.uint8)[header:]


def halved(images):
    return images.astype(float).reshape(len(images), 16, 2, 16, 2).mean((2, 4)).round().astype(np.uint8)


small, large, *rest = sys.argv[1:]
if not rest:
    images = np.pad(read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:50], ((0, 0), (2, 2), (2, 2)))
    labels = read("t10k-labels-idx1-ubyte.gz", 8)[:50].astype(np.int64)
    np.savez(small, arr_0=halved(images)[..., None], arr_1=labels)
    np.savez(large, arr_0=images[..., None], arr_1=labels)
else:
    from PIL import Image

    sets = [np.load(file)["arr_0"][..., 0] for file in (small, rest[0], large)]
    repeated, enlarged, original = sets[0].repeat(2, 1).repeat(2, 2), *sets[1:]
    for name, images in [("pixels repeated", repeated), ("enlarged", enlarged)]:
        print(f"{name}: {np.sqrt(((images.astype(float) - original) ** 2).mean()):.1f} of 255 from the originals (rms)")
    print(f"enlarged and made small again: {np.sqrt(((halved(enlarged).astype(float) - sets[0]) ** 2).mean()):.1f} (rms)")
    framed = [np.pad(images[:10], ((0, 0), (1, 1), (1, 1)), constant_values=48) for images in (repeated, enlarged, original)]
    sheet = Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in framed]))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.NEAREST).save(rest[1], optimize=True)

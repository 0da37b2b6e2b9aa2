"""The embedded grey feature network: the images that it is trained and judged on, and its file from a checkpoint.

    python docs/grey.py images /usr/share/datasets/fashion-mnist OUT
    python docs/grey.py pack RUN/checkpoints/STEP/ema_0.999.safetensors OUT

The first writes grey-train.npz and grey-test.npz, the second grey-1.safetensors with the parameters in float16.

Digits (classes 0 to 9) are the repository's, the last 297 of them for the test, the others eight times each. Fashion-MNIST
(classes 10 to 19) is once enlarged to 32x32 and once centred on black. Needs NumPy, Pillow and
safetensors.
"""
import gzip, pathlib, sys
import numpy as np
from PIL import Image


def idx(folder, name, head):
    return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8)[head:]


def enlarged(images):
    return np.stack([np.asarray(Image.fromarray(i).resize((32, 32), Image.BICUBIC)) for i in images])


def images(fashion, out):
    raw = np.frombuffer(gzip.decompress(pathlib.Path("crates/ddpm-ip/assets/digits.bin.gz").read_bytes()), np.uint8)
    digit_labels, levels = raw[:1797], raw[1797:].reshape(1797, 8, 8).astype(np.uint32)
    digits = enlarged(((levels * 255 + 8) // 16).astype(np.uint8))
    for part, prefix, chosen, copies in [("train", "train", slice(0, 1500), 8), ("test", "t10k", slice(1500, None), 1)]:
        clothes = idx(fashion, f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        clothes_labels = idx(fashion, f"{prefix}-labels-idx1-ubyte.gz", 8) + 10
        padded = np.pad(clothes, ((0, 0), (2, 2), (2, 2)))
        pixels = np.concatenate([digits[chosen]] * copies + [enlarged(clothes), padded])[..., None]
        labels = np.concatenate([digit_labels[chosen]] * copies + [clothes_labels] * 2).astype(np.int64)
        np.savez(out / f"grey-{part}.npz", arr_0=pixels, arr_1=labels)
        print(part, pixels.shape)


def pack(checkpoint, out):
    from safetensors.numpy import load_file, save_file

    parameters = {name: values.astype(np.float16) for name, values in load_file(checkpoint).items()}
    save_file(parameters, out / "grey-1.safetensors")


what, source, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
{"images": images, "pack": pack}[what](source, out)

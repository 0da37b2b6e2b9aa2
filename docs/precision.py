"""How exact `ddpm-ip evaluate` is, stage by stage: the numbers of docs/precision.md.

    python docs/precision.py PROGRAM WEIGHTS.pth /usr/share/datasets/fashion-mnist FOLDER

WEIGHTS.pth are FID-Inception's, or random ones in the same layout. Compares features with torch-fidelity's network in float32 and in
float64, moments with NumPy, distances with SciPy and with torch-fidelity's, on 500 training and 500 test images of
Fashion-MNIST, padded to 32x32, in colour. Needs torch-fidelity, SciPy.
"""
import gzip, json, pathlib, subprocess, sys
import numpy as np
import scipy.linalg
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric, fid_features_to_statistics

program, weights, fashion, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4])
N = 500


def images(name):
    raw = np.frombuffer(gzip.decompress((fashion / name).read_bytes()), np.uint8)[16:].reshape(-1, 28, 28)[:N]
    return np.repeat(np.pad(raw, ((0, 0), (2, 2), (2, 2)))[..., None], 3, 3)


def features(pixels, dtype):
    network = FeatureExtractorInceptionV3("i", ["2048"], weights).to(dtype)
    # torch-fidelity 0.4.0 reads its own option "float64" as float32.
    network.feature_extractor_internal_dtype = dtype
    with torch.no_grad():
        parts = [network(torch.from_numpy(pixels[i : i + 50].transpose(0, 3, 1, 2)))[0] for i in range(0, N, 50)]
    return torch.cat(parts).double().numpy()


def error(found, exact):
    return np.abs(found - exact).max() / np.abs(exact).max()


sides = {"a": images("train-images-idx3-ubyte.gz"), "b": images("t10k-images-idx3-ubyte.gz")}
for name, pixels in sides.items():
    np.savez(folder / f"{name}.npz", arr_0=pixels)
call = [program, "evaluate", folder / "a.npz", folder / "b.npz", "--features", f"inception:{weights}", "--json", "--quiet"]
cache = folder / "cache"
report = json.loads(subprocess.run([*call, "--cache", cache], check=True, capture_output=True, text=True).stdout)
ours = {}
for path in cache.glob("features/*/*.features"):
    raw = path.read_bytes()
    rows = np.frombuffer(raw[raw.index(b"\n") + 1 :], np.float32).reshape(N, 2048).astype(np.float64)
    ours[path.stem] = (rows, np.load(path.with_suffix(".npz")))
single = {name: features(pixels, torch.float32) for name, pixels in sides.items()}
double = {name: features(pixels, torch.float64) for name, pixels in sides.items()}
matched = {name: min(ours.values(), key=lambda o: np.abs(o[0] - single[name]).max()) for name in sides}

print(f"features, ours against float32:    {max(error(matched[n][0], single[n]) for n in sides):.1e}")
print(f"features, ours against float64:    {max(error(matched[n][0], double[n]) for n in sides):.1e}")
print(f"features, float32 against float64: {max(error(single[n], double[n]) for n in sides):.1e}")
for n in sides:
    rows, statistics = matched[n]
    print(f"mean of {n}: {error(statistics['mu'], rows.mean(0)):.1e}, covariance: {error(statistics['sigma'], np.cov(rows, rowvar=False)):.1e}")


def frechet(a, b):
    (mu1, sigma1), (mu2, sigma2) = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return (mu1 - mu2) @ (mu1 - mu2) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(np.real(root))


def exact(a, b):
    """Without covariances: the trace is the sum of the singular values of the centred rows' products."""
    x, y = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * root


def fidelity(a, b):
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    return fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]


rows = [matched[n][0] for n in sides]
print(f"FID of our features, exactly:         {exact(*rows):.10f}")
print(f"  ours                                {report['fid']:.10f}")
print(f"  SciPy's sqrtm                       {frechet(*rows):.10f}")
print(f"  torch-fidelity's                    {fidelity(*rows):.10f}")
print(f"FID of float64 features, exactly:     {exact(double['a'], double['b']):.10f}")
print(f"  of torch-fidelity's float32, exactly {exact(single['a'], single['b']):.10f}")
print(f"  torch-fidelity's, all its own       {fidelity(single['a'], single['b']):.10f}")

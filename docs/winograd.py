"""What the points of Winograd's F(4x4, 3x3) lose: python docs/winograd.py. Needs NumPy.

The error of a 3x3 convolution of normal values in float32, as a share of the output's norm, against float64: summed plainly, by
F(2x2, 3x3), and by F(4x4, 3x3) with several points. The matrices are Toom and Cook's.
"""
import numpy as np

CHANNELS, OUTPUTS, TILES = 32, 16, 64


def matrices(points, m):
    """Aᵀ, G and Bᵀ for m outputs of 3 taps, from finite points; the last is infinity."""
    n = m + 2
    at, g, bt = np.zeros((m, n)), np.zeros((n, 3)), np.zeros((n, n))
    for j, p in enumerate(points):
        others = [q for q in points if q != p]
        at[:, j] = np.power(p, np.arange(m))
        g[j] = np.power(p, np.arange(3)) / np.prod([p - q for q in others])
        bt[j, : n - 1] = np.poly(others)[::-1]
    at[-1, -1] = g[-1, -1] = 1
    bt[-1] = np.poly(points)[::-1]
    return [x.astype(np.float32) for x in (at, g, bt)]


def product(a, b):
    """A matrix product summed in float32, term after term."""
    out = np.zeros(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1]), np.float32)
    for k in range(a.shape[-1]):
        out += a[..., :, k : k + 1] * b[..., k : k + 1, :]
    return out


def both(matrix, x):
    return product(product(matrix, x), matrix.T)


def errors(points, m):
    random = np.random.default_rng(0)
    x = random.standard_normal((TILES, CHANNELS, m + 2, m + 2)).astype(np.float32)
    w = random.standard_normal((OUTPUTS, CHANNELS, 3, 3)).astype(np.float32)
    exact, plain = np.zeros((TILES, OUTPUTS, m, m)), np.zeros((TILES, OUTPUTS, m, m), np.float32)
    for i in range(3):
        for j in range(3):
            for c in range(CHANNELS):
                seen, tap = x[:, None, c, i : i + m, j : j + m], w[None, :, c, i, j, None, None]
                exact += seen.astype(np.float64) * tap
                plain += seen * tap
    at, g, bt = matrices(points, m)
    inputs, weights = both(bt, x), both(g, w)
    sums = np.zeros((TILES, OUTPUTS, m + 2, m + 2), np.float32)
    for c in range(CHANNELS):
        sums += inputs[:, None, c] * weights[None, :, c]
    return [np.linalg.norm(y - exact) / np.linalg.norm(exact) for y in (plain, both(at, sums))]


print(f"plain sum {errors([0, 1, -1], 2)[0]:.1e}, F(2x2) {errors([0, 1, -1], 2)[1]:.1e}")
for p, q in [(1, 2), (1, 0.5), (0.5, 1.5), (0.75, 1.5), (0.625, 1.5)]:
    print(f"F(4x4) with 0, ±{p}, ±{q}, infinity: {errors([0, p, -p, q, -q], 4)[1]:.1e}")

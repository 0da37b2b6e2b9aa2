"""What input perturbation and the corrections do where everything can be computed: Gaussian data, and a mixture.

    python docs/mixture.py OUT

Writes OUT/mixture.png and OUT/mixture.json, and prints the tables. No network, nothing random: the variance of a chain on Gaussian
data follows a recursion, and on a mixture the law of x_t is kept as N quantiles that every step moves. Needs numpy, scipy and
matplotlib; a few minutes of one core. docs/mixture.md has the formulas and what comes out.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

T = 1000
# The linear schedule of DDPM, as `--noise-schedule linear`.
BETA = np.linspace(1e-4, 0.02, T)
ALPHA_BAR = np.cumprod(1 - BETA)
# Quantiles that stand for a law. With 1000 distances differ by less than 3 %.
N = 500
P = (np.arange(N) + 0.5) / N


class Step:
    """A reverse step from one noise level to the next: x' = x_start_weight x̂_0 + x_weight x + noise n."""

    def __init__(self, alpha_bar, before, sampler, fraction=0.0):
        """From `alpha_bar` to `before`. `fraction` is where a learned variance lies between the smallest and the largest."""
        self.alpha, self.sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        if sampler == "ddim":
            a, s = np.sqrt(before), np.sqrt(1 - before)
            self.x_start_weight, self.x_weight, self.noise = a - s * self.alpha / self.sigma, s / self.sigma, 0.0
            return
        beta = 1 - alpha_bar / before
        smallest = beta * (1 - before) / (1 - alpha_bar)
        self.x_start_weight = np.sqrt(before) * beta / (1 - alpha_bar)
        self.x_weight = np.sqrt(alpha_bar / before) * (1 - before) / (1 - alpha_bar)
        self.noise = np.exp(((1 - fraction) * np.log(smallest) + fraction * np.log(beta)) / 2) if before < 1 else 0.0

    def eps_weight(self):
        """How much x' falls as ε grows."""
        return -self.x_start_weight * self.sigma / self.alpha

    def __call__(self, x, eps):
        return self.x_start_weight * (x - self.sigma * eps) / self.alpha + self.x_weight * x


def times(steps):
    """Evenly spaced timesteps with both ends, the last first."""
    return np.round(np.linspace(0, T - 1, steps)).astype(int)[::-1]


def chain(steps, sampler, fraction=lambda t: 0.0):
    """The steps of a chain, each with its timestep."""
    nodes = times(steps)
    for i, t in enumerate(nodes):
        before = ALPHA_BAR[nodes[i + 1]] if i + 1 < steps else 1.0
        yield t, Step(ALPHA_BAR[t], before, sampler, fraction(t))


# Gaussian data of variance v


def slope(v, alpha_bar, gamma):
    """f = slope · x is what an ideal network trained with γ answers."""
    return np.sqrt(1 - alpha_bar) / (alpha_bar * v + (1 + gamma**2) * (1 - alpha_bar))


def learned_fraction(v, gamma):
    """Where the variance that minimises the variational bound lies between β̃ and β, in logarithms (T steps, ideal network)."""

    def fraction(t):
        t = max(t, 1)
        alpha_bar, before = ALPHA_BAR[t], ALPHA_BAR[t - 1]
        step, s2 = Step(alpha_bar, before, "ddpm"), 1 + gamma**2
        seen = alpha_bar * v + s2 * (1 - alpha_bar)
        # E(s ε' − f)², the residual that the bound sees at perturbed inputs.
        residual = s2 - 2 * s2 * (1 - alpha_bar) / seen + (1 - alpha_bar) / seen
        best = step.noise**2 + step.eps_weight() ** 2 * residual
        return np.log(best / step.noise**2) / np.log(BETA[t] / step.noise**2)

    return fraction


def variance_ratio(v, steps, sampler, gamma=0.0, excess=0.0, noise=0.0):
    """The variance of samples over that of the data.

    `excess`: the network predicts (1 + excess) times ε. `noise`: it adds independent noise of this deviation at every call."""
    fraction = learned_fraction(v, gamma) if sampler == "ddpm-learned" else lambda t: 0.0
    variance = 1.0
    for t, step in chain(steps, "ddim" if sampler == "ddim" else "ddpm", fraction):
        gain = step(1.0, (1 + excess) * slope(v, ALPHA_BAR[t], gamma))
        variance = gain**2 * variance + step.noise**2 + (step.eps_weight() * noise) ** 2
    return variance / v


def limit_ratio(v, sampler, gamma):
    """The same with infinitely many steps, from VE noise S = σ/α at the last timestep."""
    s2, big = 1 + gamma**2, (1 - ALPHA_BAR[-1]) / ALPHA_BAR[-1]
    if sampler == "ddim":
        return (1 / v) * (v / (v + s2 * big)) ** (1 / s2) * (1 / ALPHA_BAR[-1])
    return 1 / (1 - gamma**2)


def right_gamma(v, steps, sampler, **errors):
    """The γ with which the variance is right; 0 where it is too large without."""
    miss = lambda gamma: variance_ratio(v, steps, sampler, gamma, **errors) - 1
    if miss(0.0) >= 0:
        return 0.0
    return brentq(miss, 0, 1) if miss(1.0) > 0 else np.nan


class Mixture(NamedTuple):
    """A mixture of Gaussians."""

    weights: np.ndarray
    means: np.ndarray
    deviations: np.ndarray

    def eps(self, x, alpha_bar, blur=0.0):
        """ε*(x), of the data convolved with N(0, blur²)."""
        alpha, variance = np.sqrt(alpha_bar), 1 - alpha_bar
        seen = alpha_bar * (self.deviations**2 + blur**2) + variance
        away = x[:, None] - alpha * self.means
        log = np.log(self.weights) - 0.5 * np.log(seen) - 0.5 * away**2 / seen
        share = np.exp(log - log.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        return np.sqrt(variance) * (share * away / seen).sum(1)

    def quantiles(self):
        x = np.unique(np.concatenate([m + d * np.linspace(-9, 9, 4001) for m, d in zip(self.means, self.deviations)]))
        return np.interp(P, (self.weights * ndtr((x[:, None] - self.means) / self.deviations)).sum(1), x)


# A dark ground, grey, and a bright stroke, as a pixel of a small grey image.
PIXEL = Mixture(np.array([0.5, 0.2, 0.3]), np.array([-0.9, 0.0, 0.8]), np.array([0.03, 0.2, 0.1]))


def with_noise(x, deviation):
    """The quantiles of x + deviation · n."""
    x = np.sort(x)
    if deviation == 0:
        return x
    guess = (x - x.mean()) * np.sqrt(1 + deviation**2 / x.var()) + x.mean()
    ends = np.linspace(x[0] - 7 * deviation, x[-1] + 7 * deviation, N // 2)
    y = np.unique(np.concatenate([ends, guess]))
    return np.interp(P, ndtr((y[:, None] - x) / deviation).mean(1), y)


def alpha_bar_at(t):
    """ᾱ between timesteps: the logarithm of the signal-to-noise ratio is straight."""
    log = np.interp(np.clip(t, 0, T - 1), np.arange(T), np.log(ALPHA_BAR / (1 - ALPHA_BAR)))
    return 1 / (1 + np.exp(-log))


# Errors that are planted in the network, each added to what its ideal would answer.
ERRORS = {
    "none": {},
    "ε 1 % too large": {"excess": 0.01},
    "ε 1 % too small": {"excess": -0.01},
    "blurred by 0.03": {"blur": 0.03},
    "noise 0.05 at each call": {"noise": 0.05},
    "5 timesteps late": {"late": 5},
}
# Corrections, with the settings that are tried.
CORRECTIONS = {
    "training with γ": ("gamma", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
    "es:λ": ("scale", [0.98, 0.99, 0.995, 1.005, 1.01, 1.02, 1.03, 1.05]),
    "shift:Δ": ("shift", [-20, -10, -5, 5, 10, 20]),
    "time-shift:w,0": ("window", [10, 30, 80]),
    "dcw:pixel,c": ("dcw", [-0.05, -0.02, -0.01, 0.01, 0.02, 0.05]),
    "noise:S": ("more_noise", [0.96, 0.98, 1.02, 1.04, 1.08, 1.15]),
}


def samples(data, steps, sampler, gamma=0.0, scale=1.0, shift=0.0, window=0, dcw=0.0, more_noise=1.0, excess=0.0, blur=0.0, noise=0.0, late=0.0):
    """Quantiles of what a chain ends with."""
    x = ndtri(P)
    for t, step in chain(steps, sampler):
        at = t + shift
        if window:
            near = np.linspace(t - window / 2, t + window / 2, 101)
            at = near[np.argmin((x.var() - (1 - alpha_bar_at(near))) ** 2)]
        called = alpha_bar_at(at + late) if at + late != t else ALPHA_BAR[t]
        # The ideal network answers for the noise that it was trained to see.
        s = np.sqrt(1 + gamma**2)
        kappa2 = called + s**2 * (1 - called)
        eps = data.eps(x / np.sqrt(kappa2), called / kappa2, blur) / s * (1 + excess) / scale
        y = step(x, eps)
        if dcw:
            y = y + dcw * step.sigma * (y - (x - step.sigma * eps) / step.alpha)
        x = with_noise(y, np.hypot(step.noise * more_noise, step.eps_weight() * noise / scale))
    return x


def distance(x, real):
    """Wasserstein's W2 between laws of numbers: the root mean square difference of their quantiles."""
    return float(np.sqrt(np.mean((x - real) ** 2)))


def gaussian_tables():
    gammas = np.linspace(0, 0.3, 61)
    table = {"gamma": gammas.tolist(), "ratio": {}, "right_gamma": {}}
    for sampler in ["ddim", "ddpm", "ddpm-learned"]:
        for steps in [10, 20, 50, 100, 1000]:
            table["ratio"][f"{sampler}, {steps}"] = [variance_ratio(0.25, steps, sampler, g) for g in gammas]
        if sampler != "ddpm-learned":
            table["ratio"][f"{sampler}, limit"] = [limit_ratio(0.25, sampler, g) for g in gammas]
    counts = np.unique(np.round(np.geomspace(8, 1000, 40)).astype(int))
    excesses = np.linspace(-0.005, 0.03, 36)
    table["steps"], table["excess"] = counts.tolist(), excesses.tolist()
    for v in [0.25, 0.05, 0.01]:
        table["right_gamma"][f"v = {v}"] = [right_gamma(v, int(n), "ddim") for n in counts]
    for steps in [20, 100, 1000]:
        table["right_gamma"][f"ddim, {steps} steps"] = [right_gamma(0.25, steps, "ddim", excess=a) for a in excesses]
    return table


def mixture_tables():
    real = PIXEL.quantiles()
    table = {"gamma": [0.0] + CORRECTIONS["training with γ"][1], "curves": {}, "corrections": {}}
    for sampler, steps in [("ddim", 20), ("ddim", 100), ("ddpm", 20), ("ddpm", 100)]:
        for error, planted in ERRORS.items():
            plain = distance(samples(PIXEL, steps, sampler, **planted), real)
            best = {"nothing": [plain, None]}
            for correction, (name, values) in CORRECTIONS.items():
                if name == "more_noise" and sampler == "ddim":
                    continue
                tried = [distance(samples(PIXEL, steps, sampler, **planted, **{name: value}), real) for value in values]
                if name == "gamma":
                    table["curves"][f"{sampler}, {steps}, {error}"] = [plain, *tried]
                best[correction] = [min(tried), values[int(np.argmin(tried))]]
            table["corrections"][f"{sampler}, {steps}, {error}"] = best
    return table


def checks():
    """What the study rests on: the recursion, its limit and the quantiles agree where they describe the same."""
    for sampler in ["ddim", "ddpm"]:
        fine = [variance_ratio(0.25, 1000, sampler, gamma) / variance_ratio(0.25, 1000, sampler) for gamma in [0.1, 0.2]]
        limits = [limit_ratio(0.25, sampler, gamma) / limit_ratio(0.25, sampler, 0) for gamma in [0.1, 0.2]]
        assert np.allclose(fine, limits, rtol=0.02), (sampler, fine, limits)
    gaussian = Mixture(np.array([1.0]), np.array([0.0]), np.array([0.5]))
    ideal = ndtri(P).var()
    for sampler, planted in [("ddim", {"gamma": 0.1}), ("ddpm", {"gamma": 0.2}), ("ddim", {"noise": 0.05}), ("ddpm", {"excess": 0.01})]:
        moved, followed = samples(gaussian, 20, sampler, **planted).var() / ideal * 4, variance_ratio(0.25, 20, sampler, **planted)
        assert abs(moved / followed - 1) < 0.01, (sampler, planted, moved, followed)


def draw(gaussian, mixture, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 3, figsize=(12, 7))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, 6))

    for axis, sampler, title in [(axes[0, 0], "ddim", "DDIM"), (axes[0, 1], "ddpm", "DDPM (dashed: learned variance)")]:
        for colour, steps in zip(colours, [10, 20, 50, 100, 1000, "limit"]):
            name = "infinitely many" if steps == "limit" else steps
            axis.plot(gaussian["gamma"], gaussian["ratio"][f"{sampler}, {steps}"], color=colour, label=name)
            if sampler == "ddpm" and steps != "limit":
                axis.plot(gaussian["gamma"], gaussian["ratio"][f"ddpm-learned, {steps}"], color=colour, ls="--")
        axis.axhline(1, color="black", lw=0.6)
        axis.set(title=f"Gaussian, {title}", xlabel="γ of the training", ylabel="variance of samples / of data", ylim=(0.4, 1.8))
        axis.legend(title="steps", frameon=False)

    axis = axes[0, 2]
    for colour, steps in zip(colours[1::2], [20, 100, 1000]):
        axis.plot(100 * np.array(gaussian["excess"]), gaussian["right_gamma"][f"ddim, {steps} steps"], color=colour, label=f"{steps} steps")
    excess = np.array([a for a in gaussian["excess"] if a >= 0])
    axis.plot(100 * excess, np.sqrt(excess), color="black", ls=":", label="√excess: λ = 1 + γ²")
    axis.set(title="Gaussian, DDIM: the right γ", xlabel="% by which the network's ε is too large", ylabel="γ")
    axis.legend(frameon=False)

    colours = plt.get_cmap("tab10")(range(10))
    for axis, (sampler, steps) in zip(axes[1], [("ddim", 20), ("ddim", 100), ("ddpm", 100)]):
        for colour, error in zip(colours, ERRORS):
            curve = mixture["curves"][f"{sampler}, {steps}, {error}"]
            axis.plot(mixture["gamma"], curve, color=colour, marker="o", ms=3, label=f"{error}")
        axis.set(title=f"Mixture, {sampler.upper()} with {steps} steps", xlabel="γ of the training", ylabel="W2 of samples and data", ylim=(0, None))
    axes[1, 2].legend(title="planted in the network", frameon=False, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    checks()
    tables = {"gaussian": gaussian_tables(), "mixture": mixture_tables()}
    (out / "mixture.json").write_text(json.dumps(tables, indent=1, ensure_ascii=False))
    draw(**tables, path=out / "mixture.png")
    for setting, best in tables["mixture"]["corrections"].items():
        print(setting)
        for name, (w2, value) in best.items():
            print(f"  {name:16} {w2:.4f}" + ("" if value is None else f"  at {value}"))


if __name__ == "__main__":
    main()

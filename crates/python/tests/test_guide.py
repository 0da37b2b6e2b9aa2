"""The snippets of docs/your-own-model.md do what its table says."""

import re
from pathlib import Path

import numpy as np
import pytest

import ddpm_ip

GUIDE = Path(__file__).parents[3] / "docs/your-own-model.md"
SNIPPETS = re.findall(r"<!-- (\S+) (\S+) (\S+) -->\n```python\n(.*?)```", GUIDE.read_text(), re.S)
GAMMA, LEVEL, COUNT = 0.5, 300, 400_000


def test_none_is_left_out():
    assert len(SNIPPETS) == GUIDE.read_text().count("```python") == 12


def surroundings(kind, predicts, answer):
    """What stands around a snippet: images of ones, one noise level, and a network that answers answer(x_t)."""
    schedule = ddpm_ip.Schedule()
    a, b = schedule.signal[LEVEL], schedule.noise[LEVEL]
    given = {"gamma": GAMMA, "t": LEVEL, "signal": schedule.signal, "sigma": schedule.noise, "np": np}
    given |= {"model": lambda x, t: answer(x), "ddpm_ip": ddpm_ip, "schedule": schedule, "x_0": np.ones((COUNT, 1))}
    if kind in ("torch", "diffusers", "edm"):
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        given |= {"torch": torch, "F": torch.nn.functional, "x_0": torch.ones(COUNT, 1)}
    if kind == "diffusers":
        diffusers = pytest.importorskip("diffusers")
        given |= {"scheduler": diffusers.DDPMScheduler(), "timesteps": torch.full((COUNT,), LEVEL)}
    if kind == "jax":
        jax = pytest.importorskip("jax")
        given |= {"jax": jax, "jnp": jax.numpy, "key": jax.random.key(0), "x_0": jax.numpy.ones((COUNT, 1))}
    if kind == "edm":
        a, b = 1.0, 3.0
        given |= {"sigma": b, "weight": 1.0, "denoiser": lambda x, sigma: answer(x)}
    if predicts == "velocity":
        a, b = 0.4, 0.6
        given["t"] = b
    return given, a, b


@pytest.mark.parametrize("predicts, mode, kind, code", SNIPPETS, ids=lambda text: text if len(text) < 12 else "")
def test_a_snippet_trains_what_the_table_says(predicts, mode, kind, code):
    """The loss of a network that answers k·x_t, for two k, tells all second moments of what is shown and asked for."""
    np.random.seed(0)
    for k in (0.0, 0.7):
        given, a, b = surroundings(kind, predicts, lambda x, k=k: k * x)
        exec(code, given)
        mix = ddpm_ip.Perturbation(GAMMA, mode).mix_at(a, b, predicts)
        # x_0 is 1 everywhere: k·x_t - target = mean + of_eps·ε + of_xi·ξ.
        mean = k * mix.x_start - mix.target_x_start
        of_eps, of_xi = k * mix.noise - mix.target_noise, k * mix.xi
        expected = mean**2 + of_eps**2 + of_xi**2
        spread = np.sqrt((2 * (of_eps**2 + of_xi**2) ** 2 + 4 * mean**2 * (of_eps**2 + of_xi**2)) / COUNT)
        assert abs(float(given["loss"]) - expected) < 5 * spread + 1e-5, (k, float(given["loss"]), expected)

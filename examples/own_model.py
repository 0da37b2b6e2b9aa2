"""Input perturbation in a training loop of your own: both forms train a network to the same place.

    python examples/own_model.py [STEPS]

Needs torch and numpy, and half a minute of one core. `docs/your-own-model.md` explains what it shows.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

GAMMA, T, BATCH = 0.3, 1000, 256
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
DIGITS = Path(__file__).parent.parent / "crates/ddpm-ip/assets/digits.bin.gz"

pixels = np.frombuffer(gzip.decompress(DIGITS.read_bytes()), np.uint8)[1797:].reshape(1797, 64)
images = torch.tensor(pixels / 8 - 1, dtype=torch.float32)  # 17 grey levels, now from -1 to 1
alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, T), 0)
signal, noise = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


class Network(nn.Module):
    """Predicts the noise in 8x8 images."""

    def __init__(self):
        super().__init__()
        self.frequencies = torch.exp(torch.linspace(0, -9, 16))
        self.first, self.second, self.last = nn.Linear(96, 256), nn.Linear(256, 256), nn.Linear(256, 64)

    def forward(self, x, t):
        angles = t[:, None] * self.frequencies
        h = nn.functional.silu(self.first(torch.cat([x, angles.sin(), angles.cos()], 1)))
        return self.last(h + nn.functional.silu(self.second(h)))


def loss(network, x_0, form, gamma):
    t = torch.randint(T, (len(x_0),))
    a, b, eps = signal[t, None], noise[t, None], torch.randn_like(x_0)
    if form == "sampled":
        shown, target, constant = a * x_0 + b * (eps + gamma * torch.randn_like(x_0)), eps, 0
    else:
        s = (1 + gamma**2) ** 0.5
        shown, target, constant = a * x_0 + b * s * eps, eps / s, gamma**2 / (1 + gamma**2)
    return (network(shown, t) - target).square().mean() + constant


def train(form, gamma, seed):
    torch.manual_seed(seed)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters())
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / STEPS)
        optimizer.zero_grad()
        loss(network, images[torch.randint(len(images), (BATCH,))], form, gamma).backward()
        optimizer.step()
    return network


@torch.no_grad()
def measured(network):
    """Its loss in both forms at GAMMA, and its answers, for draws that are the same for all networks."""
    torch.manual_seed(1)
    many = images.repeat(20, 1)
    losses = [loss(network, many, form, GAMMA).item() for form in ("sampled", "equivalent")]
    return losses, network(torch.randn(5000, 64), torch.randint(T, (5000,)))


networks = {}
for name, form, gamma, seed in [
    ("sampled", "sampled", GAMMA, 0),
    ("sampled, another seed", "sampled", GAMMA, 2),
    ("equivalent", "equivalent", GAMMA, 3),
    ("equivalent, another seed", "equivalent", GAMMA, 4),
    ("without perturbation", "sampled", 0, 5),
]:
    networks[name] = measured(train(form, gamma, seed))
first = networks["sampled"][1]
print(f"{'trained':26} {'sampled loss':>12} {'equivalent + c':>14} {'away from the first':>20}")
for name, ((sampled, equivalent), answers) in networks.items():
    away = ((answers - first).square().mean() / first.square().mean()).sqrt()
    print(f"{name:26} {sampled:12.4f} {equivalent:14.4f} {away:20.3f}")

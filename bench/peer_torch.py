#!/usr/bin/env python3
"""The U-Net of ddpm-ip in PyTorch, to check the program's numbers and to compare its speed.

Architecture and weights come from a checkpoint of ddpm-ip. Setting up (modes that compile need g++, too):

    python3 -m venv v && v/bin/pip install torch numpy safetensors
    ddpm-ip train --preset digits --steps 1 --grid-images 0 --out runs/peer

Does the program compute what PyTorch computes?

    v/bin/python bench/peer_torch.py --checkpoint runs/peer --verify --program target/release/ddpm-ip

How fast is PyTorch on this machine, in one configuration or in the best of all?

    v/bin/python bench/peer_torch.py --checkpoint runs/peer --task train --batch-size 64
    v/bin/python bench/peer_torch.py --checkpoint runs/peer --task sample --mode compile
    v/bin/python bench/peer_torch.py --checkpoint runs/peer --task sample --precision bf16 --all

A configuration is printed as one line of JSON. Its images_per_sec is the median over repeats of one step:

- train: noise and perturb a batch that is in memory, forward, loss (with the variational bound's term where
  the variance is learned), backward, norm of the gradient, AdamW, averages of the weights;
- sample: one call of the network and one step of ancestral sampling.

Timesteps are drawn uniformly from 1 to T-1, where the bound's term is a divergence of Gaussians. Respacing
changes tables, not work, and is left out.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG_KEY = "ddpm_ip.config"
NORM_GROUPS = 32
MODES = ["eager", "compile", "compile-frozen"]
MEMORY_FORMATS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
CHANNEL_MULT = {
    512: [0.5, 1, 1, 2, 2, 4, 4],
    256: [1, 1, 2, 2, 4, 4],
    128: [1, 1, 2, 3, 4],
    64: [1, 2, 3, 4],
    32: [1, 2, 2, 2],
}


# The network. Names of parameters are those of openai/guided-diffusion.


class SiLU(nn.Module):
    """SiLU; in place where no gradient asks for the input again."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not self.training)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels)


def conv3x3(from_channels: int, to_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(from_channels, to_channels, 3, stride=stride, padding=1)


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


class ResBlock(nn.Module):
    """A residual block, conditioned on an activated embedding; `resize` changes the size of both branches."""

    def __init__(
        self,
        from_channels: int,
        to_channels: int,
        embedding: int,
        dropout: float,
        scale_shift_norm: bool,
        resize: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.resize = resize
        self.in_layers = nn.Sequential(norm(from_channels), SiLU(), conv3x3(from_channels, to_channels))
        # The embedding's SiLU is the same in every block and is computed once, by the network.
        self.emb_layers = nn.Sequential(
            nn.Identity(), nn.Linear(embedding, 2 * to_channels if scale_shift_norm else to_channels)
        )
        self.out_layers = nn.Sequential(
            norm(to_channels), SiLU(), nn.Dropout(dropout), conv3x3(to_channels, to_channels)
        )
        same = from_channels == to_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(from_channels, to_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        in_norm, in_act, in_conv = self.in_layers
        out_norm, out_act, dropout, out_conv = self.out_layers
        h = in_act(in_norm(x))
        if self.resize:
            h, x = self.resize(h), self.resize(x)
        h = in_conv(h)
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, out_norm(h), 1 + scale)
        else:
            h = out_norm(h.add_(emb))
        h = out_conv(dropout(out_act(h)))
        return h.add_(self.skip_connection(x))


class AttentionBlock(nn.Module):
    """Self-attention over all positions."""

    def __init__(self, channels: int, heads: int, new_order: bool):
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)
        qkv = F.linear(h, self.qkv.weight.squeeze(2), self.qkv.bias)
        if self.new_order:
            q, k, v = qkv.view(n, -1, 3, self.heads, c // self.heads).unbind(2)
        else:
            q, k, v = qkv.view(n, -1, self.heads, 3, c // self.heads).unbind(3)
        h = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        h = F.linear(h.transpose(1, 2).flatten(2), self.proj_out.weight.squeeze(2), self.proj_out.bias)
        return x + h.transpose(1, 2).unflatten(2, (height, width))


class Downsample(nn.Module):
    """Half the size, by a convolution or by means."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        self.op = conv3x3(channels, channels, stride=2) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the size, by repetition, then perhaps a convolution."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        self.conv = conv3x3(channels, channels) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(double(x))


class Block(nn.Sequential):
    """Layers, of which the residual blocks are given the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of t `[N]` times falling frequencies: `[N, channels]`."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10_000) / half))
    angles = t[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, channels % 2))


class UNet(nn.Module):
    """The ADM U-Net (Dhariwal & Nichol, arXiv 2105.05233) of a configuration's section `model`."""

    def __init__(self, model: dict, learn_sigma: bool):
        super().__init__()
        self.channels = model["num_channels"]
        image_size, in_channels = model["image_size"], model["in_channels"]
        multipliers = model["channel_mult"] or CHANNEL_MULT[image_size]
        level_channels = [int(m * self.channels) for m in multipliers]
        attention_factors = {image_size // resolution for resolution in model["attention_resolutions"]}
        heads, heads_up = model["num_heads"], model["num_heads_upsample"]
        embedding = 4 * self.channels

        def res(from_channels: int, to_channels: int, resize: Callable | None = None) -> ResBlock:
            dropout, scale_shift_norm = model["dropout"], model["use_scale_shift_norm"]
            return ResBlock(from_channels, to_channels, embedding, dropout, scale_shift_norm, resize)

        def attention(channels: int, heads: int) -> AttentionBlock:
            per_head = model["num_head_channels"]
            heads = heads if per_head == -1 else channels // per_head
            return AttentionBlock(channels, heads, model["use_new_attention_order"])

        self.time_embed = nn.Sequential(
            nn.Linear(self.channels, embedding), SiLU(), nn.Linear(embedding, embedding)
        )
        self.label_emb = nn.Embedding(model["num_classes"], embedding) if model["class_cond"] else None

        channels = level_channels[0]
        self.input_blocks = nn.ModuleList([Block(conv3x3(in_channels, channels))])
        skips = [channels]
        for level, to_channels in enumerate(level_channels):
            for _ in range(model["num_res_blocks"]):
                layers = [res(channels, to_channels)]
                if 2**level in attention_factors:
                    layers.append(attention(to_channels, heads))
                self.input_blocks.append(Block(*layers))
                channels = to_channels
                skips.append(channels)
            if level < len(level_channels) - 1:
                if model["resblock_updown"]:
                    down = res(channels, channels, halve)
                else:
                    down = Downsample(channels, model["conv_resample"])
                self.input_blocks.append(Block(down))
                skips.append(channels)

        self.middle_block = Block(
            res(channels, channels), attention(channels, heads), res(channels, channels)
        )

        self.output_blocks = nn.ModuleList()
        for level, to_channels in reversed(list(enumerate(level_channels))):
            for i in range(model["num_res_blocks"] + 1):
                layers = [res(channels + skips.pop(), to_channels)]
                channels = to_channels
                if 2**level in attention_factors:
                    layers.append(attention(channels, heads if heads_up == -1 else heads_up))
                if level > 0 and i == model["num_res_blocks"]:
                    if model["resblock_updown"]:
                        layers.append(res(channels, channels, double))
                    else:
                        layers.append(Upsample(channels, model["conv_resample"]))
                self.output_blocks.append(Block(*layers))

        out_channels = 2 * in_channels if learn_sigma else in_channels
        self.out = nn.Sequential(norm(channels), SiLU(), conv3x3(channels, out_channels))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output for images `[N, C, H, W]`, times `[N]` as the network sees them and labels `[N]`."""
        dtype = self.time_embed[0].weight.dtype
        emb = self.time_embed(timestep_embedding(t, self.channels).to(dtype))
        if self.label_emb is not None:
            emb = emb + self.label_emb(labels)
        emb = F.silu(emb)
        h = x.to(dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)


# The diffusion process.


class Diffusion:
    """Noising, loss and ancestral sampling of a network that predicts the noise."""

    def __init__(self, config: dict):
        c = config["diffusion"]
        if c["prediction"] != "epsilon" or "mse" not in c["loss"]:
            raise SystemExit("only networks that predict epsilon, with a loss mse or rescaled-mse, are timed")
        self.steps = c["diffusion_steps"]
        self.time_scale = 1000 / self.steps if c["rescale_timesteps"] else 1.0
        self.variance = c["variance"]
        self.vb_factor = self.steps / 1000 if c["loss"] == "rescaled-mse" else 1.0
        self.gamma = config["perturbation"]["gamma"]
        self.clip = config["sample"]["clip_denoised"]

        if c["noise_schedule"] == "linear":
            scale = 1000 / self.steps
            betas = torch.linspace(scale * 1e-4, scale * 0.02, self.steps, dtype=torch.float64)
        else:
            u = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            signal = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        before = F.pad(alpha_bar[:-1], (1, 0), value=1.0)
        posterior_variance = betas * (1 - before) / (1 - alpha_bar)
        posterior_variance[0] = posterior_variance[1]

        self.sqrt_alpha_bar = alpha_bar.sqrt().float()
        self.sqrt_one_minus_alpha_bar = (1 - alpha_bar).sqrt().float()
        self.recip = (1 / alpha_bar).sqrt().float()
        self.recipm1 = (1 / alpha_bar - 1).sqrt().float()
        self.coef1 = (betas * before.sqrt() / (1 - alpha_bar)).float()
        self.coef2 = ((1 - betas).sqrt() * (1 - before) / (1 - alpha_bar)).float()
        self.log_beta = betas.log().float()
        self.log_posterior_variance = posterior_variance.log().float()

    @property
    def learned(self) -> bool:
        return self.variance in ("learned", "learned-range")

    def noise(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Perturbed noisy images and the noise that the network should find in them."""
        eps = torch.randn_like(x_start)
        noise = torch.add(eps, torch.randn_like(x_start), alpha=self.gamma) if self.gamma else eps
        return at(self.sqrt_alpha_bar, t) * x_start + at(self.sqrt_one_minus_alpha_bar, t) * noise, eps

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicted noise and, where the variance is learned, the network's other half; in f32."""
        eps, *values = output.float().chunk(2 if self.learned else 1, dim=1)
        return eps, values[0] if values else None

    def posterior_mean(self, x_start: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return at(self.coef1, t) * x_start + at(self.coef2, t) * x

    def predicted_x_start(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return at(self.recip, t) * x - at(self.recipm1, t) * eps

    def log_variance(self, values: Tensor | None, t: Tensor) -> Tensor:
        """Of a reverse step from t >= 1."""
        match self.variance:
            case "learned":
                return values
            case "learned-range":
                return torch.lerp(at(self.log_posterior_variance, t), at(self.log_beta, t), (values + 1) / 2)
            case "fixed-large":
                return at(self.log_beta, t)
            case _:
                return at(self.log_posterior_variance, t)

    def loss(self, output: Tensor, x_start: Tensor, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        predicted, values = self.split(output)
        loss = F.mse_loss(predicted, eps)
        if self.learned:
            # The bound trains the variance and must not touch the prediction.
            with torch.no_grad():
                mean = self.posterior_mean(self.predicted_x_start(x, predicted, t), x, t)
                squared = (self.posterior_mean(x_start, x, t) - mean).square_()
            true, log_variance = at(self.log_posterior_variance, t), self.log_variance(values, t)
            ratio = (true - log_variance).exp() + squared * (-log_variance).exp()
            kl = 0.5 * (log_variance - true - 1 + ratio)
            loss = loss + kl.mean() * (self.vb_factor / math.log(2))
        return loss

    def step(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The images one step of ancestral sampling further."""
        eps, values = self.split(output)
        x_start = self.predicted_x_start(x, eps, t)
        if self.clip:
            x_start = x_start.clamp_(-1, 1)
        sigma = (0.5 * self.log_variance(values, t)).exp()
        return torch.addcmul(self.posterior_mean(x_start, x, t), sigma, torch.randn_like(x))


def at(table: Tensor, t: Tensor) -> Tensor:
    """A table's value for each image, `[N, 1, 1, 1]`."""
    return table[t][:, None, None, None]


# Checkpoints.


def checkpoint_file(path: Path) -> Path:
    """The network's file: itself, in a checkpoint's folder or in the newest checkpoint of a run."""
    if path.is_file():
        return path
    steps = sorted((path / "checkpoints").glob("step_*"), key=lambda p: int(p.name.removeprefix("step_")))
    return (steps[-1] if steps else path) / "model.safetensors"


def read_checkpoint(path: Path) -> tuple[dict, dict[str, str], dict[str, Tensor]]:
    """Configuration, metadata and tensors of a file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}
    config = tomllib.loads(metadata[CONFIG_KEY])
    if config["model"]["class_cond"]:
        config["model"]["num_classes"] = len(state["label_emb.weight"])
    return config, metadata, state


def build(config: dict, state: dict[str, Tensor], args: argparse.Namespace) -> UNet:
    """The network with the checkpoint's weights."""
    network = UNet(config["model"], learn_sigma=config["diffusion"]["variance"].startswith("learned"))
    network.load_state_dict(state, strict=True)
    dtype = torch.bfloat16 if args.bf16_weights else torch.float32
    return network.to(dtype=dtype, memory_format=MEMORY_FORMATS[args.memory_format])


def compiled(network: UNet, mode: str) -> Callable[..., Tensor]:
    if mode == "eager":
        return network
    if mode == "compile-frozen":
        # Weights become constants, laid out and converted in advance for the kernels that use them.
        torch._inductor.config.freezing = True
    return torch.compile(network)


def parameter_count(network: UNet) -> int:
    return sum(p.numel() for p in network.parameters())


# Comparing numbers.


def verify(args: argparse.Namespace) -> bool:
    """Whether the program's output for random weights and input is PyTorch's, within rounding."""
    config, metadata, state = read_checkpoint(checkpoint_file(args.checkpoint))
    generator = torch.Generator().manual_seed(0)
    # Convolutions that begin as zero would hide what happens before them.
    for tensor in state.values():
        scale = 0.5 / math.sqrt(tensor[0].numel()) if tensor.ndim > 1 else 0.1
        tensor += scale * torch.randn(tensor.shape, generator=generator)

    model, n = config["model"], args.batch_size or 2
    x = torch.randn(n, model["in_channels"], model["image_size"], model["image_size"], generator=generator)
    t = torch.rand(n, generator=generator) * config["diffusion"]["diffusion_steps"]
    y = torch.randint(model["num_classes"], (n,), generator=generator) if model["class_cond"] else None

    network = build(config, state, args).eval()
    forward = compiled(network, args.mode)
    with torch.inference_mode():
        ours = forward(x.to(memory_format=MEMORY_FORMATS[args.memory_format]), t, y).numpy()

    with tempfile.TemporaryDirectory() as folder:
        weights, inputs, output = (str(Path(folder, name)) for name in ("w.safetensors", "in.npz", "out.npz"))
        save_file(state, weights, metadata)
        arrays = {"x": x, "t": t} | ({} if y is None else {"y": y})
        np.savez(inputs, **{name: array.numpy() for name, array in arrays.items()})
        command = [args.program, "predict", "--checkpoint", weights, "--input", inputs, "--output", output]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        theirs = np.load(output)["out"]
        info = subprocess.run([args.program, "info", "--json", weights], check=True, stdout=subprocess.PIPE)
        their_count = json.loads(info.stdout)["parameters"]

    count = parameter_count(network)
    largest = np.abs(ours).max()
    absolute = np.abs(ours - theirs).max() if ours.shape == theirs.shape else math.inf
    ok = count == their_count and absolute <= 1e-4 * largest
    print(f"parameters: {count} in PyTorch, {their_count} in the program")
    print(f"output {list(ours.shape)}, largest magnitude {largest:.4g}")
    print(f"largest difference: {absolute:.3g} absolute, {absolute / largest:.3g} relative to that magnitude")
    print("the same" if ok else "DIFFERENT")
    return ok


# Measuring time.


def train_step(
    network: UNet, forward: Callable, config: dict, args: argparse.Namespace
) -> Callable[[], None]:
    """A function that does one step of training."""
    diffusion, train = Diffusion(config), config["train"]
    network.train()
    parameters = list(network.parameters())
    averages = [(rate, [p.detach().clone() for p in parameters]) for rate in train["ema_rate"]]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=train["lr"],
        betas=tuple(train["adam_betas"]),
        eps=train["adam_eps"],
        weight_decay=train["weight_decay"],
        fused=True,
    )
    x_start = random_images(config, args).clamp_(-1, 1)
    labels = random_labels(config, args)

    def step() -> None:
        t = torch.randint(1, diffusion.steps, (args.batch_size,))
        x, eps = diffusion.noise(x_start, t)
        with autocast(args):
            output = forward(x, t * diffusion.time_scale, labels)
        diffusion.loss(output, x_start, x, eps, t).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters], foreach=True)
        if train["grad_clip"] > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, train["grad_clip"], norm, foreach=True)
        optimizer.step()
        for rate, average in averages:
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - rate)
        optimizer.zero_grad(set_to_none=True)

    return step


def sample_step(
    network: UNet, forward: Callable, config: dict, args: argparse.Namespace
) -> Callable[[], None]:
    """A function that does one step of sampling, down a chain that begins anew when it ends."""
    diffusion = Diffusion(config)
    network.eval()
    # Every call gets tensors of the same kind and layout: another kind would be compiled anew.
    with torch.inference_mode():
        labels, x = random_labels(config, args), random_images(config, args)
    i = diffusion.steps

    @torch.inference_mode()
    def step() -> None:
        nonlocal i
        i = i - 1 if i > 1 else diffusion.steps - 1
        t = torch.full((args.batch_size,), i)
        with autocast(args):
            output = forward(x, t * diffusion.time_scale, labels)
        x.copy_(diffusion.step(output, x, t))

    return step


def autocast(args: argparse.Namespace) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16" and not args.bf16_weights)


def random_images(config: dict, args: argparse.Namespace) -> Tensor:
    model = config["model"]
    x = torch.randn(args.batch_size, model["in_channels"], model["image_size"], model["image_size"])
    return x.to(memory_format=MEMORY_FORMATS[args.memory_format])


def random_labels(config: dict, args: argparse.Namespace) -> Tensor | None:
    model = config["model"]
    return torch.randint(model["num_classes"], (args.batch_size,)) if model["class_cond"] else None


def peak_memory_bytes() -> int:
    """The most memory that the process has had in RAM (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure(args: argparse.Namespace) -> dict:
    """One configuration's result."""
    torch.manual_seed(0)
    config, _, state = read_checkpoint(checkpoint_file(args.checkpoint))
    args.batch_size = args.batch_size or config[args.task]["batch_size"]
    network = build(config, state, args)
    del state
    prepare = train_step if args.task == "train" else sample_step
    step = prepare(network, compiled(network, args.mode), config, args)
    for _ in range(args.warmup):
        step()
    rates = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        step()
        rates.append(args.batch_size / (time.perf_counter() - start))
    return {
        "task": args.task,
        "precision": args.precision,
        "bf16_weights": args.bf16_weights,
        "mode": args.mode,
        "memory_format": args.memory_format,
        "batch_size": args.batch_size,
        "parameters": parameter_count(network),
        "images_per_sec": float(np.median(rates)),
        "images_per_sec_min": min(rates),
        "images_per_sec_max": max(rates),
        "peak_memory_bytes": peak_memory_bytes(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def measure_all(args: argparse.Namespace) -> dict | None:
    """Every configuration of the task and precision, each in its own process; the fastest's result."""
    common = [sys.executable, __file__, "--checkpoint", str(args.checkpoint)]
    for name in ("task", "precision", "batch_size", "repeats", "warmup", "threads"):
        value = getattr(args, name)
        common += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    sampling = args.task == "sample"
    weights = [[], ["--bf16-weights"]] if sampling and args.precision == "bf16" else [[]]
    results = []
    for mode in MODES if sampling else ["eager", "compile"]:
        for memory_format in MEMORY_FORMATS:
            for kind in weights:
                options = ["--mode", mode, "--memory-format", memory_format, *kind]
                run = subprocess.run(common + options, stdout=subprocess.PIPE, text=True)
                if run.returncode != 0:
                    print(f"failed with status {run.returncode}: {' '.join(options)}", file=sys.stderr)
                    continue
                line = run.stdout.strip().splitlines()[-1]
                print(line, flush=True)
                results.append(json.loads(line))
    return max(results, key=lambda r: r["images_per_sec"], default=None)


def parse_args() -> argparse.Namespace:
    summary, _, examples = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="run, checkpoint folder or .safetensors file")
    add("--verify", action="store_true", help="compare with the program's output, instead of timing")
    add("--program", help="path of ddpm-ip, for --verify")
    add("--task", choices=["train", "sample"], help="what to time")
    add("--all", action="store_true", help="time every mode, memory format and kind of bf16")
    add("--precision", choices=["f32", "bf16"], default="f32", help="bf16: autocast, the weights in f32")
    add("--bf16-weights", action="store_true", help="sample with the weights in bf16, without autocast")
    add("--mode", choices=MODES, default="eager", help="compile-frozen: with constant weights, for sampling")
    add("--memory-format", choices=list(MEMORY_FORMATS), default="channels-last")
    add("--batch-size", type=int, help="default: the configuration's; 2 with --verify")
    add("--repeats", type=int, default=10, help="steps timed")
    add("--warmup", type=int, default=3, help="steps before them")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    args = parser.parse_args()
    if args.verify != bool(args.program):
        parser.error("--verify and --program PATH go together")
    if args.verify == bool(args.task):
        parser.error("give either --verify or --task")
    if args.bf16_weights and (args.task != "sample" or args.precision != "bf16"):
        parser.error("--bf16-weights is for --task sample --precision bf16")
    if args.mode == "compile-frozen" and args.task == "train":
        parser.error("--mode compile-frozen cannot train")
    if args.verify and args.precision != "f32":
        parser.error("--verify compares f32")
    return args


def main() -> int:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.verify:
        return 0 if verify(args) else 1
    if args.all:
        best = measure_all(args)
        print(json.dumps({"best": best}))
        return 0 if best else 1
    print(json.dumps(measure(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

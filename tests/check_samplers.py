"""Proves with the real diffusers that the samplers take the same steps.

    cargo build --release -p ddpm-math --example chain
    python -m venv venv && venv/bin/pip install diffusers==0.42.1 torch numpy scipy
    venv/bin/python tests/check_samplers.py target/release/examples/chain

The example says what the network answers and which noise is drawn; here stand the same formulas. Prints a line for each thing
that is shown to hold with the largest deviation of any x after any step, relative where x is above 1, and ends with an error
at the first that does not.

On the same nodes, put in by hand: schedules linear and cosine of 1000 timesteps; spacings uniform, quadratic, log-snr and
karras; 1, 2, 3, 10 and 25 steps. ᾱ is put in too: diffusers multiplies it in float32.

    sampler            in diffusers                                              arithmetic   largest deviation
    ddim               DDIMScheduler, η = 0                                      float64      2e-12
    ddim-stochastic    DDIMScheduler, η = 1, the noise given                     float64      6e-12
    dpm-solver++       DPMSolverMultistepScheduler, dpmsolver++, midpoint        float32      3e-7
    dpm-solver++-sde   the same, sde-dpmsolver++, the noise given                float32      3e-7
    unipc              UniPCMultistepScheduler, bh2                              float64      4e-12
    heun               HeunDiscreteScheduler, which cannot churn                 float64      3e-8

Where few steps go down from σ/α = 20 000, at the end of the cosine schedule, the difference of Heun's slopes has few digits.

As diffusers makes them, with 5, 10 and 20 steps of the linear schedule: Karras's nodes for the last four, every T/N-th timestep
for DDIM. Whole timesteps are the same, σ/α differ by 8e-5 at the noisy end, where float32 has few digits of ᾱ, and x by up to
2e-4 with 5 steps, 5e-5 with 10 and 20.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler

T = 1000


def alpha_bars(schedule):
    """ᾱ in float64. diffusers multiplies in float32, which moves ᾱ by 1e-5 at the noisy end."""
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, T)
    else:
        bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.array([min(1 - bar((i + 1) / T) / bar(i / T), 0.999) for i in range(T)])
    return np.cumprod(1 - betas)


def ours(program, *words):
    """Time and ᾱ of the nodes, the noisiest first, and x before the first step and after each."""
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FAILED: {program} {' '.join(map(str, words))}\n{done.stderr}")
    made = json.loads(done.stdout)
    return np.array(made["nodes"]), torch.tensor(made["x"], dtype=torch.float64)


def eps(x, time, table):
    told = round(float(time))
    alpha, sigma = table[told] ** 0.5, (1 - table[told]) ** 0.5
    return (x - alpha * 0.8 * torch.tanh(1.5 * x + math.sin(0.003 * told))) / sigma


def noise(step):
    return torch.tensor([1.4 * math.sin(7 * step + 3 * i + 1) for i in range(4)], dtype=torch.float64)


def deviation(ours, theirs):
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())


def holds(what, deviation, tolerance):
    if not deviation <= tolerance:
        sys.exit(f"FAILED  {what}: {deviation:.1e} is above {tolerance:.0e}")
    print(f"ok  {what}: {deviation:.1e}")


def sigmas_of(nodes):
    """σ/α of the nodes, and 0 for the data."""
    return torch.tensor([*((1 - nodes[:, 1]) / nodes[:, 1]) ** 0.5, 0.0], dtype=torch.float64)


def placed(scheduler, nodes):
    """Puts a scheduler on these nodes, in float64."""
    scheduler.set_timesteps(len(nodes))
    times, sigmas = torch.tensor(nodes[:, 0]), sigmas_of(nodes)
    if isinstance(scheduler, HeunDiscreteScheduler):
        scheduler.timesteps, scheduler.sigmas = twice(times), torch.cat([twice(sigmas[:-1]), sigmas[-1:]])
    else:
        scheduler.timesteps, scheduler.sigmas = times.round().long(), sigmas
    return scheduler


def twice(values):
    """HeunDiscreteScheduler lists the nodes after the first twice, once for each call."""
    return torch.cat([values[:1], values[1:].repeat_interleave(2)])


def multistep(scheduler, x, table):
    """x after every step of a scheduler that is called once a step."""
    # By default a step is looked up by its timestep, of which there may be two.
    scheduler.set_begin_index(0)
    all = [x]
    for step, time in enumerate(scheduler.timesteps):
        more = {"variance_noise": noise(step)[None]} if "sde" in scheduler.config.get("algorithm_type", "") else {}
        # The solvers want a batch before the pixels.
        x = scheduler.step(eps(x, time, table)[None], time, x[None], return_dict=False, **more)[0][0]
        all.append(x)
    return torch.stack(all)


def heun(scheduler, x, table):
    """x after every step; the scheduler's own is x/α."""
    scheduler.set_begin_index(0)
    alphas = (1 + torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]).double() ** 2) ** -0.5
    all, y = [x], x / alphas[0]
    for call, time in enumerate(scheduler.timesteps):
        # Calls 0, 2, 4 and so on begin steps, the others are at the next node.
        y = scheduler.step(eps(y * alphas[(call + 1) // 2], time, table), time, y, return_dict=False)[0]
        if call % 2 or call + 1 == len(scheduler.timesteps):
            all.append(y * alphas[len(all)])
    return torch.stack(all)


def ddim(scheduler, times, eta, x, table):
    """x after every step, where the network is told these times."""
    all = [x]
    for step, index in enumerate(scheduler.timesteps):
        answer = eps(x, times[step], table)
        x = scheduler.step(answer, int(index), x, eta=eta, variance_noise=noise(step), return_dict=False)[0]
        all.append(x)
    return torch.stack(all)


def ddim_of(nodes):
    """DDIMScheduler goes from t to t − 1 of a process of as many timesteps as there are nodes."""
    scheduler = DDIMScheduler(num_train_timesteps=len(nodes), clip_sample=False)
    scheduler.alphas_cumprod = torch.tensor(nodes[::-1, 1].copy())
    scheduler.set_timesteps(len(nodes))
    return scheduler


def schedulers(**settings):
    return {
        "dpm-solver++": DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **settings),
        "dpm-solver++-sde": DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2, **settings),
        "unipc": UniPCMultistepScheduler(solver_order=2, solver_type="bh2", **settings),
        "heun": HeunDiscreteScheduler(**settings),
    }


def check_on_our_nodes(program, schedule, spacing, steps):
    table = alpha_bars(schedule)
    what = lambda name: f"{name}, {schedule}, {spacing}, {steps} steps"
    for name, eta in [("ddim", 0.0), ("ddim-stochastic", 1.0)]:
        nodes, x = ours(program, name, spacing, steps, schedule)
        holds(what(name), deviation(x, ddim(ddim_of(nodes), nodes[:, 0], eta, x[0], table)), 1e-9)
    log_sigmas = np.interp(nodes[:, 0], np.arange(T), np.log((1 - table) / table) / 2)
    apart = np.abs(log_sigmas - sigmas_of(nodes)[:-1].log().numpy()).max()
    holds(f"log(σ/α) of the nodes lies between timesteps as in diffusers, {schedule}, {spacing}, {steps} steps", apart, 1e-7)
    for name, scheduler in schedulers().items():
        nodes, x = ours(program, name, spacing, steps, schedule)
        run, tolerance = {"heun": (heun, 1e-6), "unipc": (multistep, 1e-9)}.get(name, (multistep, 1e-5))
        holds(what(name), deviation(x, run(placed(scheduler, nodes), x[0], table)), tolerance)


def check_untouched(program, steps):
    """Schedulers as diffusers makes them, on nodes of their own."""
    table = alpha_bars("linear")
    betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    for name, scheduler in schedulers(use_karras_sigmas=True, **betas).items():
        nodes, x = ours(program, name, "karras", steps)
        scheduler.set_timesteps(steps)
        expected = placed(schedulers()[name], nodes)
        what = f"{name}, untouched, linear, Karras's spacing, {steps} steps"
        holds(f"{what}: σ/α", float((scheduler.sigmas[:-1] / expected.sigmas[:-1] - 1).abs().max()), 1e-4)
        holds(f"{what}: t", float((scheduler.timesteps - expected.timesteps).abs().max()), 1e-2 if name == "heun" else 0)
        holds(f"{what}: x", deviation(x, (heun if name == "heun" else multistep)(scheduler, x[0], table)), 3e-4)
    for name, eta in [("ddim", 0.0), ("ddim-stochastic", 1.0)]:
        nodes, x = ours(program, name, "uniform", f"ddim{steps}")
        scheduler = DDIMScheduler(clip_sample=False, **betas)
        scheduler.set_timesteps(steps)
        what = f"{name}, untouched, linear, ddim{steps}"
        holds(f"{what}: t", float((scheduler.timesteps - torch.tensor(nodes[:, 0])).abs().max()), 0)
        holds(f"{what}: x", deviation(x, ddim(scheduler, nodes[:, 0], eta, x[0], table)), 3e-4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    program = parser.parse_args().program.resolve()
    for steps in [5, 10, 20]:
        check_untouched(program, steps)
    # UniPC's coefficients are made in the default precision.
    torch.set_default_dtype(torch.float64)
    for schedule in ["linear", "cosine"]:
        for spacing in ["uniform", "quadratic", "log-snr", "karras"]:
            for steps in [1, 2, 3, 10, 25]:
                check_on_our_nodes(program, schedule, spacing, steps)


if __name__ == "__main__":
    main()

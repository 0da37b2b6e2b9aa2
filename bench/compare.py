#!/usr/bin/env python3
"""ddpm-ip and PyTorch in turn on this machine: the same network, steps and sizes, and the ratios.

    cargo build --release
    python3 -m venv v && v/bin/pip install torch numpy safetensors
    v/bin/python bench/compare.py --preset cifar10 --batch-size 16
    v/bin/python bench/compare.py --preset digits --batch-size 64 --precision f32 --task train

First the two networks are shown to be the same (peer_torch.py --verify). Then every configuration of PyTorch is
timed once, and the fastest of them and ddpm-ip take turns. Medians over the rounds, with their range. --json adds
all numbers as a line of JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PEER = [sys.executable, str(HERE / "peer_torch.py")]
# Small images stand for those of CIFAR-10: only their number and size matter here.
CHECKPOINT_FLAGS = {
    "cifar10": "--data-dir digits --in-channels 3 --allow-upscale --batch-size 2".split(),
    "digits": [],
}


def run(command: list[str]) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def best_peer(arguments: list[str]) -> dict:
    """The fastest configuration of PyTorch; each is reported on standard error."""
    lines = [json.loads(line) for line in run([*PEER, *arguments, "--all"]).splitlines()]
    for line in lines[:-1]:
        weights = " bf16 weights" if line["bf16_weights"] else ""
        name = f"{line['task']} {line['precision']} {line['mode']} {line['memory_format']}{weights}"
        memory = line["peak_memory_bytes"] / 2**20
        print(f"  torch {name}: {line['images_per_sec']:.2f} images/s, {memory:.0f} MiB", file=sys.stderr)
    return lines[-1]["best"]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(HERE.parent / "target/release/ddpm-ip"), help="the ddpm-ip to time")
    parser.add_argument("--preset", choices=sorted(CHECKPOINT_FLAGS), default="cifar10")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=["f32", "bf16"], nargs="+", default=["f32", "bf16"])
    parser.add_argument("--task", choices=["train", "sample"], nargs="+", default=["train", "sample"])
    parser.add_argument("--rounds", type=int, default=3, help="turns of the two programs")
    parser.add_argument("--repeats", type=int, default=4, help="steps timed in a turn")
    parser.add_argument("--survey-repeats", type=int, default=3, help="steps timed of each configuration of PyTorch")
    parser.add_argument("--json", action="store_true", help="also print all numbers as JSON")
    options = parser.parse_args()
    batch = ["--batch-size", str(options.batch_size)]
    report = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder) / "run")
        flags = CHECKPOINT_FLAGS[options.preset]
        preset = ["--preset", options.preset]
        train = [options.program, "train", *preset, *flags, "--steps", "1", "--grid-images", "0", "--quiet"]
        run([*train, "--out", checkpoint])
        peer = ["--checkpoint", checkpoint]
        print(run([*PEER, *peer, "--verify", "--program", options.program]).strip(), file=sys.stderr)
        print("| step | ddpm-ip, images/s | PyTorch, images/s | ratio | memory, MiB | PyTorch's best |")
        print("| --- | --- | --- | --- | --- | --- |")
        for task in options.task:
            for precision in options.precision:
                arguments = [*peer, *batch, "--task", task, "--precision", precision, "--warmup", "2"]
                best = best_peer([*arguments, "--repeats", str(options.survey_repeats)])
                chosen = [*arguments, "--repeats", str(options.repeats), "--mode", best["mode"]]
                chosen += ["--memory-format", best["memory_format"]]
                chosen += ["--bf16-weights"] if best["bf16_weights"] else []
                ours, theirs = [], []
                mine = [options.program, "bench", *preset, *batch, "--precision", precision, "--only", task]
                for _ in range(options.rounds):
                    ours.append(json.loads(run([*mine, "--repeats", str(options.repeats), "--json", "--quiet"])))
                    theirs.append(json.loads(run([*PEER, *chosen]).splitlines()[-1]))
                fast = [r[f"{task}_images_per_sec"] for r in ours]
                slow = [r["images_per_sec"] for r in theirs]
                ratio = statistics.median(fast) / statistics.median(slow)
                memory = [max(r["peak_memory_bytes"] for r in results) / 2**20 for results in (ours, theirs)]
                kind = f"{best['mode']}, {best['memory_format']}" + (", bf16 weights" * best["bf16_weights"])
                row = [f"{task}, {precision}", spread(fast), spread(slow), f"{ratio:.2f}"]
                row += [f"{memory[0]:.0f} / {memory[1]:.0f} = {memory[0] / memory[1]:.2f}", kind]
                print("| " + " | ".join(row) + " |", flush=True)
                report.append({"task": task, "precision": precision, "ratio": ratio, "ddpm_ip": ours, "torch": theirs})
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()

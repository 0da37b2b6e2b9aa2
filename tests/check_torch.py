"""Proves with the real PyTorch that checkpoints go there and back without loss.

    cargo build --release
    python -m venv venv && venv/bin/pip install torch numpy safetensors
    venv/bin/python tests/check_torch.py target/release/ddpm-ip FOLDER

Trains a tiny network in FOLDER, which must not exist, converts it, and compares tensor by tensor. Prints a line for each
thing that is shown to hold, and ends with an error at the first that does not.
"""

import argparse
import collections
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

TINY = "--num-channels 32 --num-res-blocks 1 --channel-mult 1,1 --ema-rate 0.9,0.99 --grid-images 0"


def run(program, *arguments):
    words = [word for argument in arguments for word in (argument.split() if isinstance(argument, str) else [str(argument)])]
    done = subprocess.run([program, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FAILED: {' '.join(words)}\n{done.stderr}")


def load(path):
    """Loads as data alone, with and without memory mapping, which must agree."""
    plain = torch.load(path, weights_only=True)
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert plain.keys() == mapped.keys()
    return plain


def same(ours, theirs, what):
    assert set(ours) == set(theirs), what
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape and torch.equal(tensor.float(), theirs[name].float()), f"{what}: {name}"
    print(f"ok  {what}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir()
    program, folder = Path(args.program).resolve(), args.folder
    run(program, "train --preset digits --steps 5 --quiet", TINY, "--out", folder / "run")
    own = folder / "run/checkpoints/step_000005"
    model = load_file(own / "model.safetensors")

    run(program, "convert", own / "model.safetensors", folder / "model.pt")
    state_dict = load(folder / "model.pt")
    assert type(state_dict) is collections.OrderedDict
    same(model, state_dict, "torch.load(weights_only=True) reads a converted model")

    run(program, "convert", folder / "run", folder / "trio")
    same(model, load(folder / "trio/model000005.pt"), "the trio's model")
    for rate in ["0.9", "0.99"]:
        same(load_file(own / f"ema_{rate}.safetensors"), load(folder / f"trio/ema_{rate}_000005.pt"), f"its average {rate}")

    # The names' order is that of the parameters in an optimizer.
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in state_dict.values()]
    adamw = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    saved = load(folder / "trio/opt000005.pt")
    adamw.load_state_dict(saved)
    moments = load_file(own / "state.safetensors")
    for i, name in enumerate(state_dict):
        state = adamw.state[parameters[i]]
        assert state["step"].item() == 5
        assert torch.equal(state["exp_avg"], moments[f"exp_avg/{name}"]), name
        assert torch.equal(state["exp_avg_sq"], moments[f"exp_avg_sq/{name}"]), name
    adamw.step()
    print("ok  AdamW.load_state_dict takes its optimizer")
    torch.save(adamw.state_dict(), folder / "trio/opt000005.pt")

    # What torch.save makes of it comes back.
    def back(name, saved, expected=None, **options):
        path = folder / f"{name}.pt"
        torch.save(saved, path, **options)
        run(program, "convert", path, folder / f"{name}.safetensors", "--image-size 8 --num-head-channels 32")
        same(expected or model, load_file(folder / f"{name}.safetensors"), f"torch.save, {name}")

    back("zip", state_dict)
    back("legacy", state_dict, _use_new_zipfile_serialization=False)
    back("wrapped", {"step": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state_dict.items()}})
    for dtype in [torch.float16, torch.bfloat16, torch.float64]:
        rounded = {name: tensor.to(dtype) for name, tensor in state_dict.items()}
        back(str(dtype).removeprefix("torch."), rounded, {name: tensor.float() for name, tensor in rounded.items()})

    run(program, "convert", folder / "trio/model000005.pt", folder / "again", TINY, "--image-size 8 --num-head-channels 32")
    again = folder / "again/checkpoints/step_000005"
    same(model, load_file(again / "model.safetensors"), "a trio becomes a run")
    same(moments, load_file(again / "state.safetensors"), "with the optimizer that PyTorch saved")
    print("all is well")


if __name__ == "__main__":
    main()

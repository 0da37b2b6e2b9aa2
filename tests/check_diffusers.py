"""Proves with the real diffusers that networks go there and back: same output from the same weights.

    cargo build --release
    python -m venv venv && venv/bin/pip install torch numpy safetensors diffusers
    venv/bin/python tests/check_diffusers.py target/release/ddpm-ip FOLDER

Works on small random networks in FOLDER, which must not exist. Prints a line for each thing that is shown to hold, and ends
with an error at the first that does not.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import logging
from safetensors.torch import load_file

# As google/ddpm-cifar10-32, with fewer channels.
DDIM = dict(
    sample_size=16, block_out_channels=(32, 64, 64), layers_per_block=2, freq_shift=1, flip_sin_to_cos=False, norm_eps=1e-6,
    downsample_padding=0, attention_head_dim=None,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
)
# As what diffusers' train_unconditional.py makes.
ADM = dict(
    sample_size=16, in_channels=1, out_channels=1, block_out_channels=(32, 32, 64), layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
)
# As consistency models and other networks of guided-diffusion.
RESIDUAL = dict(
    sample_size=16, in_channels=3, out_channels=6, block_out_channels=(32, 64), layers_per_block=2, attention_head_dim=16,
    resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32, downsample_type="resnet", upsample_type="resnet",
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    num_class_embeds=4,
)


def run(program, *arguments, fails=False):
    words = [str(argument) for argument in arguments]
    done = subprocess.run([program, *words], capture_output=True, text=True)
    if (done.returncode != 0) != fails:
        sys.exit(f"FAILED: {' '.join(words)}\n{done.stderr}")
    return done.stderr if fails else done.stdout


def network(settings):
    """A network with numbers everywhere, also where training begins with ones and zeros."""
    unet = UNet2DModel(**settings).eval()
    for name, parameter in unet.named_parameters():
        around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, around, 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return unet


def answers(program, unet, checkpoint, folder, what, *flags):
    """Compares our answers from a checkpoint with those of a network of diffusers."""
    config = unet.config
    given = {"x": torch.randn(2, config.in_channels, config.sample_size, config.sample_size), "t": torch.tensor([3, 741])}
    labels = {}
    if config.num_class_embeds:
        given["y"] = torch.tensor([1, 2])
        labels["class_labels"] = given["y"]
    np.savez(folder / "in.npz", **{name: values.numpy() for name, values in given.items()})
    run(program, "predict", "--checkpoint", checkpoint, "--input", folder / "in.npz", "--output", folder / "out.npz", *flags)
    with torch.no_grad():
        theirs = unet(given["x"], given["t"], **labels).sample.numpy()
    apart = np.abs(np.load(folder / "out.npz")["out"] - theirs).max() / np.abs(theirs).max()
    assert apart < 1e-5, f"{what}: {apart}"
    print(f"ok  {what}: at most {apart:.1e} of the largest value apart")


def old_names(state_dict):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state_dict = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in state_dict.items()}
    return state_dict


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir()
    program, folder = Path(args.program).resolve(), args.folder
    torch.manual_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    for name, settings in [("ddim", DDIM), ("adm", ADM), ("residual", RESIDUAL)]:
        unet = network(settings)
        there = folder / name
        unet.save_pretrained(there / "new")
        answers(program, unet, there / "new", folder, f"{name}, safetensors")
        unet.save_pretrained(there / "bin", safe_serialization=False)
        assert (there / "bin/diffusion_pytorch_model.bin").exists()
        answers(program, unet, there / "bin", folder, f"{name}, .bin")
        torch.save(old_names(unet.state_dict()), there / "bin/diffusion_pytorch_model.bin")
        answers(program, UNet2DModel.from_pretrained(there / "bin", use_safetensors=False).eval(), there / "bin", folder,
                f"{name}, .bin with the older names of attention")
        variance = "learned_range" if name == "residual" else "fixed_large"
        DDPMPipeline(unet, DDPMScheduler(variance_type=variance)).save_pretrained(there / "pipeline")
        answers(program, unet, there / "pipeline", folder, f"{name}, a pipeline")
        assert "steps = 1000" in run(program, "info", there / "pipeline")
        # There and back, bit for bit.
        run(program, "convert", there / "pipeline", there / "own.safetensors")
        run(program, "convert", there / "own.safetensors", there / "back", "--to", "diffusers")
        back = DDPMPipeline.from_pretrained(there / "back")
        ours, theirs = load_file(there / "back/unet/diffusion_pytorch_model.safetensors"), unet.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs), name
        for key, value in settings.items():
            assert list(np.atleast_1d(back.unet.config[key])) == list(np.atleast_1d(value)), key
        assert back.scheduler.config.variance_type == variance
        print(f"ok  {name} comes back from our file bit for bit")
        out = run(program, "sample", "--checkpoint", there / "back", "--num-samples", 2, "--timestep-respacing", 2, "--out",
                  there / "drawn.npz", "--json")
        assert json.loads(out.splitlines()[-1])["images"] == 2

    # Chains: DDIM without noise from the same beginning.
    unet = network(DDIM)
    DDPMPipeline(unet, DDIMScheduler(clip_sample=True)).save_pretrained(folder / "chain")
    noise = torch.randn(2, 3, 16, 16)
    np.savez(folder / "noise.npz", initial_noise=noise.numpy())
    x, scheduler = noise, DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(10)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    theirs = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy().astype(int)
    run(program, "sample", "--checkpoint", folder / "chain", "--initial-noise", folder / "noise.npz", "--num-samples", 2,
        "--timestep-respacing", "ddim10", "--out", folder / "chain.npz")
    apart = np.abs(np.load(folder / "chain.npz")["arr_0"] - theirs)
    assert apart.max() <= 1, apart.max()
    print(f"ok  a DDIMScheduler's chain of 10 steps: {np.mean(apart > 0):.1%} of the bytes differ, by 1 at most")

    # What we train goes to diffusers.
    tiny = "--num-channels 32 --num-res-blocks 1 --channel-mult 1,2 --steps 3 --batch-size 8 --grid-images 0 --quiet".split()
    for name, flags in [
        ("digits", []),
        ("digits, heads in turn", ["--use-new-attention-order", "false", "--num-head-channels", "16"]),
        ("digits, plain", ["--resblock-updown", "false", "--use-scale-shift-norm", "false", "--class-cond", "false"]),
        ("cifar10-ddim", ["--arch", "ddim", "--class-cond", "false", "--dropout", "0.1"]),
    ]:
        at = folder / name.replace(" ", "-").replace(",", "")
        # Parts that begin as zero do not show whether they are in their places.
        run(program, "train", "--preset", "digits", *tiny, "--lr", "0.1", "--out", at, *flags)
        run(program, "convert", at, at / "pipeline", "--to", "diffusers")
        pipeline = DDPMPipeline.from_pretrained(at / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        answers(program, pipeline.unet.eval(), at, folder, f"a run of {name}, written")
        answers(program, pipeline.unet.eval(), at / "pipeline", folder, f"a run of {name}, read again")
        if not pipeline.unet.config.num_class_embeds:
            image = pipeline(batch_size=1, num_inference_steps=3, output_type="np").images
            assert image.shape == (1, 8, 8, 1) and np.isfinite(image).all()
            print(f"ok  DDPMPipeline draws with a run of {name}")
        assert "exists" in run(program, "convert", at, at / "pipeline", "--to", "diffusers", fails=True)
    print("all is well")


if __name__ == "__main__":
    main()

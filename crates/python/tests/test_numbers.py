"""What the module gives is what the program gives, bit for bit."""

import filecmp
import json

import numpy as np
import pytest

import ddpm_ip


def test_a_run_is_the_programs(run, ddpm, place):
    ddpm("train", "--preset", "digits", "--out", place / "same", "--steps", 40, "--class-cond", "true", "--grid-images", 10,
         "--log-interval", 10, "--gamma", 0.1, "--device", "cpu", "--quiet")  # fmt: skip
    for name in ["model.safetensors", "ema_0.995.safetensors"]:
        ours, theirs = (folder / "checkpoints/step_000040" / name for folder in [run.path, place / "same"])
        assert filecmp.cmp(ours, theirs, shallow=False), name
    assert run.report["step"] == 40 and run.step == 40


@pytest.mark.parametrize(
    "ours, flags",
    [
        (dict(), []),
        (dict(seed=7, sampler="unipc", steps=5), ["--seed", "7", "--sampler", "unipc", "--timestep-respacing", "5"]),
        (
            dict(sampler="ddim", steps=4, eta=0.5, classes=[3, 7], correct=["es:1.01", "dcw:low,0.02"]),
            ["--sampler", "ddim", "--timestep-respacing", "4", "--eta", "0.5", "--classes", "3,7", "--correct", "es:1.01",
             "--correct", "dcw:low,0.02"],
        ),
    ],
)  # fmt: skip
def test_samples_are_the_programs(run, ddpm, tmp_path, ours, flags):
    ours = {"steps": 6, **ours}
    if "--timestep-respacing" not in flags:
        flags = [*flags, "--timestep-respacing", "6"]
    images, labels = run.model(device="cpu").sample(6, batch_size=4, labels=True, **ours)
    out = tmp_path / "samples.npz"
    ddpm("sample", "--checkpoint", run.path, "--num-samples", 6, "--out", out, "--quiet", "--device", "cpu", *flags)
    theirs = np.load(out)
    assert images.dtype == np.uint8 and images.shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(images, theirs["arr_0"])
    np.testing.assert_array_equal(labels, theirs["arr_1"])


def test_answers_are_the_programs(run, ddpm, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((3, 1, 8, 8), dtype=np.float32)
    t, y = np.array([0, 500, 999]), np.array([1, 2, 3])
    with run.model(device="cpu") as model:
        answer = model(x, t, y)
        # Another order in memory, another type of number, and lists: the same values.
        np.testing.assert_array_equal(model(np.asfortranarray(x), t.tolist(), y.astype(np.uint8)), answer)
        np.testing.assert_array_equal(model(x.astype(np.float64), t.astype(np.float32), y), answer)
    np.savez(tmp_path / "in.npz", x=x, t=t, y=y)
    ddpm("predict", "--checkpoint", run.path, "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz", "--device", "cpu")
    np.testing.assert_array_equal(answer, np.load(tmp_path / "out.npz")["out"])


def test_comparisons_are_the_programs_for_arrays_and_files(run, ddpm, tmp_path):
    images = run.model(device="cpu").sample(40, sampler="unipc", steps=5)
    np.savez(tmp_path / "samples.npz", arr_0=images)
    theirs = json.loads(ddpm("evaluate", "digits", tmp_path / "samples.npz", "--metrics", "fid,kid", "--json").stdout)
    for samples in [images, images[..., 0], tmp_path / "samples.npz"]:
        ours = ddpm_ip.evaluate("digits", samples, metrics=["fid", "kid"])
        for key in ["fid", "fid_parts", "kid"]:
            assert ours[key] == theirs[key]
    assert ours["precision"] is None


def test_bias_is_the_programs(run, ddpm, tmp_path):
    flags = dict(sampler="ddim", timestep_respacing=3, num_samples=20)
    ours = ddpm_ip.bias(run.path, device="cpu", **flags)
    ddpm("bias", "--checkpoint", run.path, "--sampler", "ddim", "--timestep-respacing", 3, "--num-samples", 20, "--out", tmp_path,
         "--device", "cpu")  # fmt: skip
    assert ours == json.loads((tmp_path / "bias.json").read_text())
    other = ddpm_ip.bias([run.path], np.eye(8, dtype=np.uint8)[np.arange(160) % 8].reshape(20, 8, 8), labels=np.arange(20) % 10, out=tmp_path / "kept", **flags)
    assert other["images"] == 20 and (tmp_path / "kept/bias.svg").exists()


def test_training_on_an_array_keeps_it_and_goes_on(ddpm, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (70, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(70) % 10
    arguments = dict(labels=labels, out=tmp_path / "run", grid_images=0, batch_size=16, device="cpu")
    ddpm_ip.train("digits", images, steps=2, **arguments)
    kept = np.load(tmp_path / "run/images.npz")
    np.testing.assert_array_equal(kept["arr_0"], images)
    np.testing.assert_array_equal(kept["arr_1"], labels)
    run = ddpm_ip.train("digits", images, steps=4, **arguments)
    assert run.step == 4
    # The program goes on with it, too.
    ddpm("train", "--config", run.path / "config.toml", "--out", run.path, "--steps", 5, "--quiet")
    assert run.step == 5
    with pytest.raises(ddpm_ip.ConfigError, match="other images"):
        ddpm_ip.train("digits", images[::-1], steps=6, **arguments)
    with pytest.raises(ddpm_ip.ConfigError):
        ddpm_ip.train("digits", images, labels=labels, steps=2, out=tmp_path / "none", gamma=-1)
    assert not (tmp_path / "none").exists()


def test_any_command_can_be_run(run, tmp_path):
    assert ddpm_ip.command("info", run.path)["step"] == 40
    assert ddpm_ip.presets()[0]["name"] == "digits"
    made = ddpm_ip.command("convert", run.path, tmp_path / "pytorch")
    assert made and list((tmp_path / "pytorch").glob("model*.pt"))
    with pytest.raises(ddpm_ip.ConfigError, match="no command .sampel"):
        ddpm_ip.command("sampel")
    assert ddpm_ip.devices()[0].startswith("cpu")


def test_super_resolution_takes_small_images(tmp_path):
    run = ddpm_ip.train(
        "digits", command="super-res-train", out=tmp_path / "run", small_size=4, steps=2, grid_images=0, device="cpu"
    )
    small = np.random.default_rng(2).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    large = run.model().sample(3, steps=3, base_samples=small)
    assert large.shape == (3, 8, 8, 1)
    answer = run.model()(np.zeros((1, 1, 8, 8), np.float32), [5], [3], low_res=np.zeros((1, 1, 4, 4), np.float32))
    assert np.isfinite(answer).all()

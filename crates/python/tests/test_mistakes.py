"""Bad input is an exception with a reason, and the interpreter lives on."""

import multiprocessing
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import ddpm_ip

X, T, Y = np.zeros((2, 1, 8, 8), np.float32), np.zeros(2), np.zeros(2, int)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((X.astype(np.uint8), T, Y), r"127.5"),
        ((X[0], T, Y), r"\[N, C, H, W\]"),
        ((X.transpose(0, 2, 3, 1), T, Y), "1 channels"),
        ((np.zeros((2, 1, 7, 8), np.float32), T, Y), "multiples of 2"),
        ((np.zeros((0, 1, 8, 8), np.float32), T[:0], Y[:0]), "shape"),
        ((X + np.float32("nan"), T, Y), "not finite"),
        ((X, T + np.inf, Y), "not finite"),
        ((X, T[:1], Y), "1 values for 2"),
        ((X, T.astype(str), Y), "one number for each"),
        ((X, T), "labels `y` are missing"),
        ((X, T, Y + 10), "outside 0"),
        ((X, T, Y - 1), "outside 0"),
        ((X, T, np.eye(10)[Y]), "one-hot"),
        ((X, T, Y + 0.5), "whole number"),
    ],
)
def test_arrays_that_the_network_does_not_take_are_refused(run, arguments, said):
    with run.model() as model, pytest.raises(ddpm_ip.ConfigError, match=said):
        model(*arguments)


@pytest.mark.parametrize(
    "images, said",
    [
        (np.zeros((4, 8, 8, 1), np.float32), "astype"),
        (np.zeros((4, 8, 8, 1), np.int64), "uint8"),
        (np.zeros((4, 3, 8, 8), np.uint8), "transpose"),
        (np.zeros((8, 8), np.uint8), r"\[N, H, W, C\]"),
        (np.zeros((0, 8, 8, 1), np.uint8), "one image"),
        (np.array(["a", "b"]), "a path"),
        (np.zeros((1, 8, 8), np.uint8), "one image"),
    ],
)
def test_images_that_are_none_are_refused(images, said):
    with pytest.raises((ddpm_ip.ConfigError, ddpm_ip.FileError), match=said):
        ddpm_ip.evaluate("digits", images)


def test_settings_are_read_as_the_program_reads_them(run, tmp_path):
    model = run.model()
    for mistake, said in [
        (lambda: model.sample(2, sampler="dimm"), "dimm"),
        (lambda: model.sample(2, stpes=3), "stpes"),
        (lambda: model.sample(2, classes=[11]), "classes 0 to 9"),
        (lambda: model.sample(2, num_channels=64), "load"),
        (lambda: model.sample(2, guidance_scale=2.0), "label-dropout"),
        (lambda: ddpm_ip.train("digits", out=tmp_path / "x", gama=0.1), "gama"),
        (lambda: ddpm_ip.train("digits", out=tmp_path / "x", settings={"train.gama": 1}), "perturbation.gamma"),
        (lambda: ddpm_ip.train("digit", out=tmp_path / "x"), "digits"),
        (lambda: ddpm_ip.load(run.path, device="cuad"), "cuad"),
        (lambda: ddpm_ip.evaluate("digits", "digits", metrics=["fdi"]), "fdi"),
    ]:
        with pytest.raises(ddpm_ip.ConfigError, match=said):
            mistake()
    with pytest.raises(TypeError, match="returns"):
        model.sample(2, out="x.npz")
    with pytest.raises(ddpm_ip.FileError, match="num-channels 32"):
        ddpm_ip.load(run.path, num_channels=64)
    with pytest.raises(ddpm_ip.FileError, match="none.pt"):
        ddpm_ip.load(tmp_path / "none.pt")
    with pytest.raises(ddpm_ip.DataError, match="no such file"):
        ddpm_ip.train(data=tmp_path / "nothing", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_errors_have_one_base():
    for kind in [ddpm_ip.ConfigError, ddpm_ip.DataError, ddpm_ip.FileError, ddpm_ip.DeviceError, ddpm_ip.DivergedError]:
        assert issubclass(kind, ddpm_ip.Error) and kind.__module__ == "ddpm_ip" and kind.__doc__
    assert issubclass(ddpm_ip.ConfigError, ValueError)


def test_a_damaged_file_is_named(run, tmp_path):
    file = tmp_path / "model.safetensors"
    bytes_ = bytearray((run.checkpoints[-1] / "model.safetensors").read_bytes())
    bytes_[-5] ^= 1
    file.write_bytes(bytes_)
    with pytest.raises(ddpm_ip.FileError, match="weight. is damaged"):
        ddpm_ip.load(file)


def test_divergence_is_an_exception_of_its_own(tmp_path):
    with pytest.raises(ddpm_ip.DivergedError, match="diverged at step"):
        ddpm_ip.train("digits", out=tmp_path / "run", lr=1e30, lr_warmup_steps=0, steps=50, grid_images=0)


def test_a_closed_model_says_so(run):
    model = run.model()
    model.close()
    model.close()
    for use in [lambda: model(X, T, Y), lambda: model.sample(1), lambda: model.config, lambda: model.parameters]:
        with pytest.raises(ddpm_ip.Error, match="closed"):
            use()
    assert "closed" in repr(model)


def test_a_model_outlives_its_file(run, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes((run.checkpoints[-1] / "model.safetensors").read_bytes())
    model = ddpm_ip.load(file)
    file.unlink()
    assert model.sample(2, steps=3).shape == (2, 8, 8, 1)


def test_a_callback_that_raises_stops_the_training_which_goes_on_later(tmp_path):
    seen = []

    def stop(event):
        if event["event"] == "step":
            seen.append(event["step"])
            if event["step"] == 5:
                raise RuntimeError("enough")

    arguments = dict(out=tmp_path / "run", steps=2000, grid_images=0)
    with pytest.raises(RuntimeError, match="enough"):
        ddpm_ip.train("digits", callback=stop, **arguments)
    step = ddpm_ip.Run(tmp_path / "run").step
    assert seen == [1, 2, 3, 4, 5] and 5 <= step < 2000
    run = ddpm_ip.train("digits", **{**arguments, "steps": step + 3})
    assert run.step == step + 3


def test_one_training_at_a_time(tmp_path):
    started, go_on = threading.Event(), threading.Event()

    def wait(event):
        if event["event"] == "step":
            started.set()
            assert go_on.wait(60)

    first = threading.Thread(
        target=ddpm_ip.train, args=("digits",), kwargs=dict(out=tmp_path / "a", steps=3, grid_images=0, callback=wait)
    )
    first.start()
    assert started.wait(60)
    try:
        with pytest.raises(ddpm_ip.Error, match="another training"):
            ddpm_ip.train("digits", out=tmp_path / "b", steps=3)
    finally:
        go_on.set()
        first.join()
    assert ddpm_ip.Run(tmp_path / "a").step == 3


def test_threads_share_a_model(run):
    model = run.model()
    expected = [model.sample(2, seed=seed, steps=3) for seed in range(4)]
    found = [None] * 4

    def draw(seed):
        found[seed] = model.sample(2, seed=seed, steps=3)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_is_told_what_to_do(run):
    run.model()(X, T, Y)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child():
        try:
            run.model()
        except ddpm_ip.Error as error:
            queue.put(str(error))

    process = context.Process(target=child)
    process.start()
    assert "spawn" in queue.get(timeout=60)
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_saves_and_raises(tmp_path):
    code = f"""
        import ddpm_ip, os, signal
        # Where tests run in the background it may be ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def press(event):
            if event["event"] == "step" and event["step"] == 5:
                os.kill(os.getpid(), signal.SIGINT)
        try:
            ddpm_ip.train("digits", out={str(tmp_path / "run")!r}, steps=100000, grid_images=0, callback=press)
        except KeyboardInterrupt:
            print("interrupted at", ddpm_ip.Run({str(tmp_path / "run")!r}).step)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "interrupted at" in done.stdout and int(done.stdout.split()[-1]) >= 5

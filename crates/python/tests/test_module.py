"""The module as a whole: its names, its types, its speed, notebooks, the console script."""

import logging
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np

import ddpm_ip


def test_the_import_is_quick_and_takes_nothing_along():
    code = "import time; t = time.perf_counter(); import ddpm_ip; print(time.perf_counter() - t); import sys; assert 'numpy' not in sys.modules"
    took = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(5)]
    print(f"import: {statistics.median(took):.4f} s")


def test_everything_has_words(run):
    names = [name for name in dir(ddpm_ip) if not name.startswith("_")]
    assert {"load", "train", "evaluate", "bias", "Model", "Run", "Schedule", "Perturbation"} <= set(names)
    for name in names:
        thing = getattr(ddpm_ip, name)
        assert thing.__doc__, name
        if isinstance(thing, type) and thing.__module__ == "ddpm_ip":
            for member in vars(thing):
                assert member.startswith("__") or vars(thing)[member].__doc__, f"{name}.{member}"
    assert ddpm_ip.__version__ == version("ddpm-ip")
    assert "digits" in repr(run) or str(run.path) in repr(run)
    assert "8x8x1" in repr(run.model())


def test_the_types_are_those_of_the_module():
    subprocess.run([sys.executable, "-m", "mypy.stubtest", "ddpm_ip", "--ignore-missing-stub"], check=True)


def test_a_run_tells_what_is_in_its_files(run):
    history = run.history
    np.testing.assert_array_equal(history["step"], [1, 10, 20, 30, 40])
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]
    assert run.config["perturbation"]["gamma"] == 0.1 and run.config["model"]["class_cond"] is True
    assert [path.name for path in run.grids] == ["step_000040.png"]
    assert run.checkpoints[-1].name == "step_000040" and run.evaluations == []
    model = run.model()
    assert (model.classes, model.image_shape, model.step) == (10, (8, 8, 1), 40)
    assert model.parameters == 354_081 and model.config["model"]["image_size"] == 8
    html = run._repr_html_()
    assert "<svg" in html and "data:image/png;base64," in html


def test_events_and_remarks_arrive(run, caplog):
    events = []
    with caplog.at_level(logging.INFO, logger="ddpm_ip"):
        run.model().sample(2, steps=3, callback=events.append, progress=False, eta=0.5)
    assert [event["step"] for event in events if event["event"] == "sample_step"] == [1, 2, 3]
    assert any("--eta" in record.message for record in caplog.records)


def test_a_bar_is_shown_where_tqdm_is(run, capsys):
    run.model().sample(2, steps=3)
    assert "sampling" in capsys.readouterr().err


def test_the_interpreter_goes_on_meanwhile(run):
    """Another thread counts while a long chain is drawn."""
    import threading

    model, counted, over = run.model(), [0], threading.Event()

    def count():
        while not over.is_set():
            counted[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    model.sample(64, steps=100, progress=False)
    over.set()
    thread.join()
    assert counted[0] > 10


def test_the_console_script_is_the_program(ddpm):
    assert ddpm("--version").stdout.strip() == f"ddpm-ip {ddpm_ip.__version__}"
    wrong = ddpm("sample", "--chekpoint", "x", check=False)
    assert wrong.returncode == 2 and "--checkpoint" in wrong.stderr


def test_a_notebook_shows_curve_and_grid(run, tmp_path):
    import nbformat
    from nbconvert.preprocessors import ExecutePreprocessor

    cell = nbformat.v4.new_code_cell(f"import ddpm_ip\nddpm_ip.Run({str(run.path)!r})")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    ExecutePreprocessor(timeout=120, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    html = notebook.cells[0].outputs[0].data["text/html"]
    assert "<svg" in html and "data:image/png;base64," in html

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import ddpm_ip


def program() -> str:
    """The program beside the module: that of the wheel, or the one named by DDPM_IP_PROGRAM."""
    named = os.environ.get("DDPM_IP_PROGRAM")
    return named or shutil.which("ddpm-ip", path=sysconfig.get_path("scripts"))


@pytest.fixture(scope="session")
def ddpm():
    """Calls the program and gives what it prints."""

    def call(*words, check=True, cwd=None):
        done = subprocess.run(
            [program(), *map(str, words)], check=False, capture_output=True, text=True, cwd=cwd, timeout=600
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return call


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("module")
    os.environ["DDPM_IP_CACHE"] = str(folder / "cache")
    return folder


@pytest.fixture(scope="session")
def run(place):
    """A short run with classes."""
    return ddpm_ip.train(
        "digits", out=place / "run", steps=40, class_cond=True, grid_images=10, log_interval=10, gamma=0.1, device="cpu"
    )

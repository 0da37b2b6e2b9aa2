"""Types of the module; what each does is told by help() on it."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Path: TypeAlias = str | PathLike[str]
_Callback: TypeAlias = Callable[[dict[str, Any]], object]
_Command: TypeAlias = Literal["train", "classifier-train", "super-res-train"]

__version__: str

class Error(Exception): ...
class ConfigError(Error, ValueError): ...
class DataError(Error, ValueError): ...
class FileError(Error): ...
class DeviceError(Error): ...
class DivergedError(Error): ...

@final
class Model:
    @property
    def file(self) -> Path: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def classes(self) -> int | None: ...
    @property
    def parameters(self) -> int: ...
    @property
    def step(self) -> int | None: ...
    def __call__(
        self, x: ArrayLike, t: ArrayLike, y: ArrayLike | None = None, *, low_res: ArrayLike | None = None
    ) -> NDArray[np.float32]: ...
    @overload
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | str | None = None,
        classes: int | str | Sequence[int | str] | None = None,
        correct: str | Sequence[str] | None = None,
        labels: Literal[False] = False,
        callback: _Callback | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> NDArray[np.uint8]: ...
    @overload
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        sampler: str | None = None,
        steps: int | str | None = None,
        classes: int | str | Sequence[int | str] | None = None,
        correct: str | Sequence[str] | None = None,
        labels: Literal[True],
        callback: _Callback | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None: ...

@final
class Run:
    def __new__(cls, path: _Path) -> Self: ...
    @property
    def path(self) -> Path: ...
    @property
    def report(self) -> dict[str, Any] | None: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def step(self) -> int: ...
    @property
    def checkpoints(self) -> list[Path]: ...
    @property
    def grids(self) -> list[Path]: ...
    @property
    def history(self) -> dict[str, NDArray[np.float64]]: ...
    @property
    def evaluations(self) -> list[dict[str, Any]]: ...
    def model(self, *, device: str = "auto", **network: Any) -> Model: ...
    def _repr_html_(self) -> str: ...

@final
class Schedule:
    def __new__(cls, noise_schedule: str = "linear", steps: int = 1000, respacing: str = "") -> Self: ...
    @property
    def betas(self) -> NDArray[np.float64]: ...
    @property
    def alphas_cumprod(self) -> NDArray[np.float64]: ...
    @property
    def signal(self) -> NDArray[np.float64]: ...
    @property
    def noise(self) -> NDArray[np.float64]: ...
    @property
    def times(self) -> NDArray[np.float64]: ...
    @property
    def posterior_variance(self) -> NDArray[np.float64]: ...
    def __len__(self) -> int: ...

@final
class Perturbation:
    def __new__(
        cls,
        gamma: float = 0.1,
        mode: str = "sampled",
        *,
        strength: str = "constant",
        gamma_start: float = 0.0,
        cutoff: float = 1.0,
        decay_steps: int = 0,
        probability: float = 0.8,
        scaled: bool = True,
    ) -> Self: ...
    @property
    def gamma(self) -> float: ...
    @property
    def mode(self) -> str: ...
    def mix(
        self,
        t: ArrayLike,
        *,
        schedule: Schedule | None = None,
        predicts: str = "epsilon",
        train_step: int = 0,
        u: ArrayLike | None = None,
    ) -> Mix: ...
    def mix_at(self, signal: ArrayLike, noise: ArrayLike, predicts: str = "epsilon") -> Mix: ...

@final
class Mix:
    @property
    def x_start(self) -> NDArray[np.float64]: ...
    @property
    def noise(self) -> NDArray[np.float64]: ...
    @property
    def xi(self) -> NDArray[np.float64]: ...
    @property
    def target_x_start(self) -> NDArray[np.float64]: ...
    @property
    def target_noise(self) -> NDArray[np.float64]: ...
    @property
    def constant(self) -> NDArray[np.float64]: ...

def load(path: _Path, *, device: str = "auto", **network: Any) -> Model: ...
def train(
    preset: str | None = None,
    data: ArrayLike | _Path | None = None,
    *,
    labels: ArrayLike | None = None,
    out: _Path | None = None,
    device: str = "auto",
    command: _Command = "train",
    callback: _Callback | None = None,
    progress: bool = True,
    **settings: Any,
) -> Run: ...
def evaluate(
    reference: ArrayLike | _Path,
    samples: ArrayLike | _Path,
    *,
    reference_labels: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    device: str = "auto",
    callback: _Callback | None = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]: ...
def bias(
    checkpoints: _Path | Sequence[_Path],
    data: ArrayLike | _Path | None = None,
    *,
    labels: ArrayLike | None = None,
    out: _Path | None = None,
    device: str = "auto",
    callback: _Callback | None = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]: ...
def command(
    name: str,
    *words: object,
    callback: _Callback | None = None,
    progress: bool = True,
    **flags: Any,
) -> Any: ...
def presets() -> list[dict[str, Any]]: ...
def devices() -> list[str]: ...
def main() -> int: ...

"""What a check is told, what it answers, and the contexts that make a comparison exact."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Setting:
    """What a check is told.

    Attributes:
        device: where it runs, "cuda" or "cpu"; it is compared with the CPU.
        folder: for its files; empty when the checks begin.
        smoke: small networks and images, and nothing compiled.
        encoder: of pretraining.
        images: in a step of pretraining; each gives two views.
        side: of a view, in pixels.
    """

    device: str
    folder: Path
    smoke: bool = False

    @property
    def encoder(self) -> str:
        return "resnet18x0.5" if self.smoke else "resnet50"

    @property
    def images(self) -> int:
        return 8 if self.smoke else 32

    @property
    def side(self) -> int:
        return 64 if self.smoke else 96


class Figure(NamedTuple):
    """One answer of a check.

    Attributes:
        name: what was measured.
        value: the measured value.
        tolerance: the largest value that passes, or with ``least`` the smallest.
        least: whether ``tolerance`` is a lower bound.
        text: what else is to be said.
    """

    name: str
    value: float
    tolerance: float
    least: bool = False
    text: str = ""

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.value >= self.tolerance if self.least else self.value <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "passed": self.passed}


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32, which torch allows in convolutions by default: it has 10 bits, and would hide an error below 1e-3."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def deterministic() -> Iterator[list[str]]:
    """Deterministic kernels, so that bits can be compared; gives the list of operations that have none.

    Such an operation is only named: what counts is whether the bits are equal. cuBLAS also needs
    CUBLAS_WORKSPACE_CONFIG, which benchmarks/gpu_check.py sets before CUDA starts.
    """
    before, found = torch.are_deterministic_algorithms_enabled(), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield found
        finally:
            torch.use_deterministic_algorithms(before)
            texts = [str(warning.message) for warning in caught]
            found += sorted({text.split()[0] for text in texts if "does not have a deterministic" in text})


@contextlib.contextmanager
def nothing_compiled(setting: Setting) -> Iterator[None]:
    """In a smoke test compiled modules run as they are: to compile takes minutes, and a C++ compiler."""
    with torch.compiler.set_stance("force_eager") if setting.smoke else contextlib.nullcontext():
        yield


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def relative(got: float, wanted: float) -> float:
    """|got - wanted| / |wanted|."""
    return abs(got - wanted) / max(abs(wanted), 1e-30)

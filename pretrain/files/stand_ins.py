"""Stand-ins for the types that a pickle names: none of them can be made to run code that the file brings along."""

import argparse
import collections
import re
from collections.abc import Callable
from typing import Any

import numpy as np


class Inert(dict):
    """Stands for the objects of ``INERT``: accepts whatever a pickle gives it, and keeps nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


def inert(name: str) -> type[Inert]:
    """A subclass of :class:`Inert` with that name."""
    return type(name, (Inert,), {})


# What training scripts save beside the weights. Read as Inert: these packages do not run and need not be installed.
# builtins.getattr comes with mmengine's HistoryBuffer, builtins.list with a defaultdict.
INERT = (
    "mmengine.", "mmcv.", "mmselfsup.", "mmpretrain.", "omegaconf.", "lightly_train.", "lightly.", "solo.", "timm.",
    "torchvision.", "torch.nn.modules.", "torch.optim.", "pytorch_lightning.", "lightning", "pathlib.", "typing.",
    "datetime.", "torch.device", "collections.Counter", "builtins.bool", "builtins.bytearray", "builtins.bytes",
    "builtins.complex", "builtins.dict", "builtins.float", "builtins.frozenset", "builtins.getattr", "builtins.int",
    "builtins.list", "builtins.range", "builtins.set", "builtins.slice", "builtins.str", "builtins.tuple",
)  # fmt: skip


class PickledDtype:
    """numpy.dtype as pickles call it, for plain numbers only: numpy's own can turn a file's bytes into pointers.

    Attributes:
        dtype: numpy's, or None if it is not of plain numbers.
    """

    dtype: np.dtype | None

    def __init__(self, code: object = "", align: object = False, copy: object = True) -> None:
        self.dtype = np.dtype(str(code)) if re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", str(code)) else None

    def __setstate__(self, state: Any) -> None:
        if self.dtype is not None and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """numpy.ndarray as pickles build it.

    Attributes:
        array: None if it does not hold plain numbers.
    """

    array: np.ndarray | None = None

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self._fill(data, kind, shape, "F" if fortran else "C")

    def _fill(self, data: object, kind: object, shape: Any, order: Any) -> "PickledArray":
        if isinstance(kind, PickledDtype) and kind.dtype is not None and isinstance(data, (bytes, bytearray, str)):
            data = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 pickled bytes
            self.array = np.frombuffer(bytearray(data), kind.dtype).reshape(shape, order=order)
        return self


def _from_buffer(data: object, kind: object, shape: Any, order: Any) -> PickledArray:
    """numpy's ``_frombuffer``: arrays in pickles of protocol 5."""
    return PickledArray()._fill(data, kind, shape, order)


def _latin1(text: str, encoding: object) -> bytes:
    """Bytes as Python 3 pickles them for Python 2; another encoding could be one that decompresses a bomb."""
    return text.encode("latin1")


def _nothing(*args: object) -> dict[Any, Any]:
    """An empty dictionary in place of a defaultdict, because torch fills no types of ours, or of a numpy scalar."""
    return {}


def _no_items(*args: object) -> list[Any]:
    """An empty list in place of a deque."""
    return []


def _allowed() -> dict[str, Callable[..., Any]]:
    """Name in a pickle -> the type or function that it gets."""
    allowed: dict[str, Callable[..., Any]] = {
        "argparse.Namespace": argparse.Namespace,  # the options of a training script
        "collections.OrderedDict": collections.OrderedDict,
        "collections.defaultdict": _nothing,
        "collections.deque": _no_items,
        "_codecs.encode": _latin1,
        "numpy.ndarray": PickledArray,
        "numpy.dtype": PickledDtype,
    }
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        allowed[f"{core}.multiarray._reconstruct"] = PickledArray
        allowed[f"{core}.multiarray.scalar"] = _nothing
        allowed[f"{core}.numeric._frombuffer"] = _from_buffer
    return allowed


ALLOWED = _allowed()

"""What stands for the types that a pickle names: nothing in here can be made to run code that the file brings along."""

import argparse
import collections
import re

import numpy as np


class Inert(dict):
    """Stands for the objects of ``INERT``: takes whatever a pickle gives it, and keeps and does nothing."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass


def inert(name):
    """A type of that name which does nothing."""
    return type(name, (Inert,), {})


# What training scripts save beside the weights: read as Inert, so that nothing of these packages runs, nor must they be
# installed. builtins.getattr comes with mmengine's HistoryBuffer, builtins.list with a defaultdict.
INERT = (
    "mmengine.", "mmcv.", "mmselfsup.", "mmpretrain.", "omegaconf.", "lightly_train.", "lightly.", "solo.", "timm.",
    "torchvision.", "torch.nn.modules.", "torch.optim.", "pytorch_lightning.", "lightning", "pathlib.", "typing.",
    "datetime.", "torch.device", "collections.Counter", "builtins.bool", "builtins.bytearray", "builtins.bytes",
    "builtins.complex", "builtins.dict", "builtins.float", "builtins.frozenset", "builtins.getattr", "builtins.int",
    "builtins.list", "builtins.range", "builtins.set", "builtins.slice", "builtins.str", "builtins.tuple",
)  # fmt: skip


class PickledDtype:
    """numpy.dtype as pickles call it, for plain numbers only: numpy's own also makes pointers of a file's bytes."""

    def __init__(self, code="", align=False, copy=True):
        self.dtype = np.dtype(str(code)) if re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", str(code)) else None

    def __setstate__(self, state):
        if self.dtype is not None and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """numpy.ndarray as pickles build it.

    Attributes:
        array: the numpy array, or None if it does not hold plain numbers.
    """

    array = None

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        _, shape, kind, fortran, data = state
        self._fill(data, kind, shape, "F" if fortran else "C")

    def _fill(self, data, kind, shape, order):
        if isinstance(kind, PickledDtype) and kind.dtype is not None and isinstance(data, (bytes, bytearray, str)):
            data = data.encode("latin1") if isinstance(data, str) else data  # as Python 2 pickled bytes
            self.array = np.frombuffer(bytearray(data), kind.dtype).reshape(shape, order=order)
        return self


def _from_buffer(data, kind, shape, order):
    """numpy's ``_frombuffer``: arrays in pickles of protocol 5."""
    return PickledArray()._fill(data, kind, shape, order)


def _latin1(text, encoding):
    """Bytes, as Python 3 pickles them for Python 2; other encodings could be made to unpack without end."""
    return text.encode("latin1")


def _nothing(*args):
    """An empty dictionary: for a defaultdict, as torch fills no types of ours, and for a number of numpy's."""
    return {}


def _no_items(*args):
    """An empty list for a deque."""
    return []


def _allowed():
    """Name in a pickle -> the type or function it stands for; none of them can be made to run code of the file's."""
    allowed = {
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

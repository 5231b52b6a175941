"""A checkpoint file of any format -> nested dictionaries of tensors, without running what the file may hold.

Formats are told by content and not by name: torch's zip archives and its older pickles, plain pickles of numpy arrays
(Detectron2's), safetensors and npz.
"""

import argparse
import codecs
import collections
import os
import pickle
import re
import warnings
import zipfile

import numpy as np
import safetensors.torch
import torch

TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began its files before version 1.6
MOST_UNPACKED = 16  # a zip archive may unpack to this many times its size: weights hardly compress, bombs do
SMALL = 64 * 2**20  # or to this many bytes


def read(path, unsafe=False):
    """Read a checkpoint.

    Args:
        path: a file of torch.save (.pth, .pt, .tar, .ckpt), .safetensors, .pkl or .npz.
        unsafe: unpickle whatever is in it, which can run code that the file brings along.

    Returns:
        What the file holds; tensors of a torch archive stay in the file (memory-mapped) until they are used.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read; one line without the path.
    """
    if not os.path.exists(path):
        raise FileNotFoundError("no such file")
    if not os.path.isfile(path):
        raise ValueError(f"a {'folder' if os.path.isdir(path) else 'device'}, expected a checkpoint file")
    try:
        with open(path, "rb") as file:
            head = file.read(40)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from None
    if not head:
        raise ValueError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats: either it loads, or the line below says why not
            return _reader(path, head)(path, unsafe)
    except ValueError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(_reason(head, error)) from None


def _reader(path, head):
    if head[:2] == b"PK":
        return _read_npz if _zip_names(path)[0].endswith(".npy") else _read_torch
    if head.startswith(TORCH_MAGIC):
        return _read_torch
    # A JSON header behind its length
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path):
        return _read_safetensors
    if head[:1] == b"\x80":
        return _read_pickle
    raise ValueError(f"not a PyTorch checkpoint, nor safetensors, .pkl or .npz (it begins with {head[:20]!r})")


def _zip_names(path):
    """Names in a zip archive, after a look at its sizes and checksums, which torch and numpy leave out."""
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(info.file_size for info in archive.infolist()), os.path.getsize(path)
        if unpacked > max(SMALL, MOST_UNPACKED * size):
            raise ValueError(
                f"a zip archive of {size / 1e6:.1f} MB that unpacks to {unpacked / 1e6:.0f} MB: weights do not "
                "compress so well, refused"
            )
        if damaged := archive.testzip():
            raise ValueError(f"a damaged checkpoint (checksum of {damaged}): copy or download it again")
        return archive.namelist() or [""]


def _read_torch(path, unsafe):
    mmap = zipfile.is_zipfile(path)  # an old file is one stream, which cannot be mapped
    if unsafe:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mmap)
    allowed = dict(ALLOWED)
    if mmap:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        allowed |= {name: _inert(name) for name in names if name not in ALLOWED and name.startswith(INERT)}
    with torch.serialization.safe_globals([(value, name) for name, value in allowed.items()]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _read_pickle(path, unsafe):
    with open(path, "rb") as file:
        return (pickle.Unpickler if unsafe else _Unpickler)(file, encoding="latin1").load()  # of Python 2, too


def _read_npz(path, unsafe):
    with np.load(path, allow_pickle=unsafe) as arrays:
        return dict(arrays)


def _read_safetensors(path, unsafe):
    return safetensors.torch.load_file(path)


class _Unpickler(pickle.Unpickler):
    """Pickle's, with the types in ``ALLOWED`` and no others."""

    def find_class(self, module, name):
        name = f"{module}.{name}"
        if name not in ALLOWED and not name.startswith(INERT):
            raise pickle.UnpicklingError(f"GLOBAL {name}")
        return ALLOWED.get(name) or _inert(name)


class Inert(dict):
    """Stands for the objects of ``INERT``: takes whatever a pickle gives it, and keeps and does nothing."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass


def _inert(name):
    """A type of that name which does nothing."""
    return type(name, (Inert,), {})


# What training scripts save beside the weights: read as Inert, so that nothing of these packages runs, nor must they be
# installed. builtins.getattr comes with mmengine's HistoryBuffer.
INERT = (
    "mmengine.", "mmcv.", "mmselfsup.", "mmpretrain.", "omegaconf.", "lightly_train.", "lightly.", "solo.", "timm.",
    "torchvision.", "torch.nn.modules.", "torch.optim.", "pytorch_lightning.", "lightning", "pathlib.", "typing.",
    "datetime.", "builtins.getattr", "builtins.set", "builtins.slice",
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


def _allowed():
    """Name in a pickle -> the type or function it stands for; none of them can be made to run code of the file's."""
    allowed = {
        "argparse.Namespace": argparse.Namespace,  # the options of a training script
        "collections.OrderedDict": collections.OrderedDict,
        "collections.defaultdict": Inert,
        "_codecs.encode": codecs.encode,  # bytes, as Python 3 pickles them for Python 2
        "numpy.ndarray": PickledArray,
        "numpy.dtype": PickledDtype,
    }
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        allowed[f"{core}.multiarray._reconstruct"] = PickledArray
        allowed[f"{core}.multiarray.scalar"] = Inert
        allowed[f"{core}.numeric._frombuffer"] = _from_buffer
    return allowed


ALLOWED = _allowed()


def _reason(head, error):
    """Why a file that begins with the bytes ``head`` could not be read."""
    text = " ".join(str(error).split())
    if match := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"holds more than tensors ({match[1].rstrip('.')}), and loading that could run code: refused; if you trust "
            "the file, add --unsafe-load, or save its state dict alone with torch.save"
        )
    if "TorchScript" in text:
        return "a TorchScript archive, expected a state dict saved with torch.save"
    if isinstance(error, (ImportError, AttributeError)):
        return f"was saved with code that is not installed here ({text}): save its state dict alone where it is"
    if isinstance(error, MemoryError):
        return "asks for more memory than there is"
    return f"a damaged or truncated checkpoint ({type(error).__name__}): copy or download it again"

"""A checkpoint file of any format -> nested dictionaries of tensors, without running what the file may hold.

The content tells the format, not the name: torch's zip archives and its older pickles, plain pickles of numpy arrays
(Detectron2's), safetensors and npz.
"""

import _compat_pickle
import errno
import hashlib
import os
import pickle
import pickletools
import re
import types
import warnings
import zipfile

import numpy as np
import safetensors.torch
import torch

from .archives import other_file
from .stand_ins import ALLOWED, INERT, Inert, PickledArray, inert
from .text import shortened

TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began its files before version 1.6
MOST_UNPACKED = 16  # a zip archive may unpack to this many times its size: weights hardly compress, bombs do
SMALL = 64 * 2**20  # or to this many bytes


def read(path, unsafe=False, remedy="add --unsafe-load"):
    """Read a checkpoint of any origin.

    Args:
        path: a file of torch.save (.pth, .pt, .tar, .ckpt), .safetensors, .pkl or .npz.
        unsafe: unpickle whatever is in it, which can run code that the file brings along.
        remedy: what to do with a file that is refused for what it holds, if it is trusted; for the message.

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
            return _compared(_reader(path, head)(path, unsafe))
    except _Refused:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(_reason(head, error, remedy)) from None


def _compared(content):
    """The content of a checkpoint; a converted one has a checksum of its weights, which is compared."""
    if isinstance(content, dict) and dict.get(content, "__author__") == "loco-det" and "checksum" in content:
        if content["checksum"] != checksum(plain(content["model"])):
            raise _Refused("a damaged checkpoint (checksum of its weights): convert or copy it again")
    return content


def checksum(arrays):
    """SHA-256, in hexadecimal, of named numpy arrays: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def read_own(path):
    """Read a checkpoint that this project has written, and compare its checksums, which torch leaves out.

    Returns:
        dict: of tensors, which stay in the file (memory-mapped) until they are used, and plain values.

    Raises:
        OSError: if there is no such file, or it cannot be opened.
        ValueError: if it is damaged, no dictionary, or holds anything but tensors and plain values; one line without
            the path.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with open(path, "rb") as file:
        head = file.read(40)
    try:
        if head[:2] != b"PK":
            raise _Refused("no file of torch.save" if head else "the file is empty")
        _zip_names(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _Refused:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(_reason(b"", error, None)) from None
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, expected a dictionary")
    return content


def plain(content):
    """What :func:`read` returns with numpy arrays in place of their stand-ins, and without what they stand for else.

    Args:
        content: nested dictionaries and lists.

    Raises:
        ValueError: if an array is not of plain numbers.
    """
    if isinstance(content, PickledArray):
        if content.array is None:
            raise ValueError("holds an array that is not of plain numbers: convert it with tools/convert_to_d2.py")
        return content.array
    if isinstance(content, Inert):
        return {}
    if isinstance(content, dict):
        return {key: plain(value) for key, value in dict.items(content)}
    return [plain(value) for value in content] if isinstance(content, list) else content


class _Refused(ValueError):
    """Our own words, unlike the ValueError of a library."""


def _reader(path, head):
    # A JSON header behind its length, whose bytes may begin as those of an archive (19280 is PK)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path):
        return _read_safetensors
    if what := other_file(path, head):
        raise _Refused(what)
    if head[:2] == b"PK":
        return _read_npz if _zip_names(path)[0].endswith(".npy") else _read_torch
    if head.startswith(TORCH_MAGIC):
        return _read_torch
    if head[:1] == b"\x80":
        return _read_pickle
    raise _Refused(f"not a PyTorch checkpoint, nor safetensors, .pkl or .npz (it begins with {head[:20]!r})")


def _zip_names(path):
    """Names in a zip archive, after a look at its sizes and checksums, which torch and numpy leave out."""
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(info.file_size for info in archive.infolist()), os.path.getsize(path)
        if unpacked > max(SMALL, MOST_UNPACKED * size):
            raise _Refused(
                f"a zip archive of {size / 1e6:.1f} MB that unpacks to {unpacked / 1e6:.0f} MB: weights do not "
                "compress so well, refused"
            )
        # Two flips beyond checksums: a member's comment, of which nobody makes any, hides the members that follow; and
        # 0x10 is DOS's mark of a folder, for which torch returns memory as it finds it
        odd = [info.filename for info in archive.infolist() if info.comment or info.external_attr & 0x10]
        if damaged := archive.testzip() or next(iter(odd), None):
            raise _Refused(f"a damaged checkpoint (checksum of {damaged!r}): copy or download it again")
        return archive.namelist() or [""]


def _read_torch(path, unsafe):
    pickles, mmap = _pickles(path)
    if unsafe:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mmap)
    names = {_full_name(*argument.split(" ", 1)) for code, argument, _ in pickles if code.name == "GLOBAL"}
    allowed = {name: inert(name) for name in names if name.startswith(INERT)} | ALLOWED
    with torch.serialization.safe_globals([(value, name) for name, value in allowed.items()]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _pickles(path):
    """The opcodes of all pickles in a torch file, and whether it can be memory-mapped."""
    if not zipfile.is_zipfile(path):  # magic number, version, system and the checkpoint, in a row
        with open(path, "rb") as file:
            return [code for _ in range(4) for code in pickletools.genops(file)], False
    with zipfile.ZipFile(path) as archive:
        codes = [c for n in archive.namelist() if n.endswith("/data.pkl") for c in pickletools.genops(archive.read(n))]
        return codes, all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def _full_name(module, name):
    """A name in a pickle as Python 3 has it."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _read_pickle(path, unsafe):
    with open(path, "rb") as file:
        return (pickle.Unpickler if unsafe else _Unpickler)(file, encoding="latin1").load()  # of Python 2, too


def _read_npz(path, unsafe):
    with np.load(path, allow_pickle=unsafe) as arrays:
        return dict(arrays)


def _read_safetensors(path, unsafe):
    return safetensors.torch.load_file(path)


class _Unpickler(pickle._Unpickler):
    """Pickle's, with the types in ``ALLOWED`` and no others.

    The one in Python and not in C, whose memo takes 64 GB if five bytes of the file say so.
    """

    def __init__(self, file, **options):
        super().__init__(file, **options)
        self.size = os.fstat(file.fileno()).st_size

    def find_class(self, module, name):
        name = _full_name(module, name)
        if name not in ALLOWED and not name.startswith(INERT):
            raise pickle.UnpicklingError(f"GLOBAL {name}")
        return ALLOWED.get(name) or inert(name)

    def load_build(self):
        if isinstance(self.stack[-2], type | types.FunctionType):  # whatever is set would outlive the file
            raise pickle.UnpicklingError("state for a type")
        super().load_build()

    def load_bytearray8(self):
        size = int.from_bytes(self.read(8), "little")
        if size > self.size:  # pickle would fill as much memory with zeros first
            raise pickle.UnpicklingError("more bytes than the file has")
        self.append(bytearray(self.read(size)))

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def _reason(head, error, remedy):
    """Why a file that begins with the bytes ``head`` could not be read, and what to do."""
    text = " ".join(str(error).split())
    match = re.search(r"GLOBAL ([\w.]+)", text)
    if match or "allow_pickle=False" in text:  # the latter is numpy's for an array of objects
        what = shortened(match[1].rstrip("."), 80) if match else "Python objects"
        trusted = f"; if you trust the file, {remedy}, or save its state dict alone with torch.save" if remedy else ""
        return f"holds more than tensors ({what}), and loading that could run code: refused{trusted}"
    if "Unsupported operand 149" in text:  # the first one of protocols 4 and 5
        trusted = f": if you trust the file, {remedy}, or save its state dict with protocol 2" if remedy else ""
        return f"saved with a pickle_protocol that torch reads only where it may run code{trusted}"
    if "TorchScript" in text:
        return "a TorchScript archive, expected a state dict saved with torch.save"
    if isinstance(error, (ImportError, AttributeError)):
        return f"was saved with code that is not installed here ({text}): save its state dict alone where it is"
    if isinstance(error, UnicodeEncodeError):
        return "a file whose path is not UTF-8, which torch and safetensors cannot open: rename it"
    if isinstance(error, MemoryError):
        return "asks for more memory than there is"
    return f"a damaged or truncated checkpoint ({type(error).__name__}): copy or download it again"

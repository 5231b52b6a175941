"""The formats of checkpoint files, detected from the file's content, and a safe reader of each.

They are torch's zip archives and its older pickles, plain pickles of numpy arrays (Detectron2's), safetensors and npz.
"""

import _compat_pickle
import os
import pickle
import pickletools
import types
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar, TypeAlias

import numpy as np
import safetensors.torch
import torch

from . import StrPath
from .archives import other_file
from .stand_ins import ALLOWED, INERT, inert

Reader: TypeAlias = Callable[[StrPath, bool], Any]  # (path, whether code in the file may run) -> its content

TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began its files before version 1.6
MOST_UNPACKED = 16  # a zip archive may unpack to this many times its size: weights hardly compress, bombs do
SMALL = 64 * 2**20  # or to this many bytes


class RefusedError(ValueError):
    """An error with a message of this project, which a library's ValueError has not."""


def reader_of(path: StrPath, head: bytes) -> Reader:
    """The reader of a checkpoint file.

    Args:
        path: the file.
        head: its first 40 bytes, or all of a shorter file.

    Raises:
        RefusedError: if it is no checkpoint, or a zip archive that is damaged or unpacks to too much.
        OSError: if it cannot be read.
    """
    # safetensors: a JSON header after its length, whose bytes may look like an archive's (19280 is PK)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path):
        return _read_safetensors
    if what := other_file(path, head):
        raise RefusedError(what)
    if head[:2] == b"PK":
        return _read_npz if checked_names(path)[0].endswith(".npy") else _read_torch
    if head.startswith(TORCH_MAGIC):
        return _read_torch
    if head[:1] == b"\x80":
        return _read_pickle
    raise RefusedError(f"not a PyTorch checkpoint, nor safetensors, .pkl or .npz (it begins with {head[:20]!r})")


def checked_names(path: StrPath) -> list[str]:
    """Names in a zip archive, [""] if it is empty, after a check of its sizes and checksums: torch and numpy do none.

    Raises:
        RefusedError: if the archive is damaged or unpacks to too much.
        zipfile.BadZipFile: and other errors of Python's, if it cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(info.file_size for info in archive.infolist()), os.path.getsize(path)
        if unpacked > max(SMALL, MOST_UNPACKED * size):
            raise RefusedError(
                f"a zip archive of {size / 1e6:.1f} MB that unpacks to {unpacked / 1e6:.0f} MB: weights do not "
                "compress so well, refused"
            )
        # Checksums do not cover two fields. A member's comment, which nobody writes, hides the members after it; 0x10
        # marks a folder of DOS, for which torch returns uninitialised memory.
        odd = [info.filename for info in archive.infolist() if info.comment or info.external_attr & 0x10]
        if damaged := archive.testzip() or next(iter(odd), None):
            raise RefusedError(f"a damaged checkpoint (checksum of {damaged!r}): copy or download it again")
        return archive.namelist() or [""]


def _read_torch(path: StrPath, unsafe: bool) -> Any:
    pickles, mmap = _pickles(path)
    if unsafe:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mmap)
    names = {_full_name(*argument.split(" ", 1)) for code, argument, _ in pickles if code.name == "GLOBAL"}
    allowed = {name: inert(name) for name in names if name.startswith(INERT)} | ALLOWED
    with torch.serialization.safe_globals([(value, name) for name, value in allowed.items()]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _pickles(path: StrPath) -> tuple[list[tuple[pickletools.OpcodeInfo, Any, int | None]], bool]:
    """The opcodes of all pickles in a torch file, and whether it can be memory-mapped."""
    if not zipfile.is_zipfile(path):  # four pickles: magic number, version, system, checkpoint
        with open(path, "rb") as file:
            return [code for _ in range(4) for code in pickletools.genops(file)], False
    with zipfile.ZipFile(path) as archive:
        codes = [c for n in archive.namelist() if n.endswith("/data.pkl") for c in pickletools.genops(archive.read(n))]
        return codes, all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def _full_name(module: str, name: str) -> str:
    """A name in a pickle, of Python 2 or 3, as Python 3 has it."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _read_pickle(path: StrPath, unsafe: bool) -> Any:
    with open(path, "rb") as file:
        return (pickle.Unpickler if unsafe else _Unpickler)(file, encoding="latin1").load()  # for Python 2's, too


def _read_npz(path: StrPath, unsafe: bool) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=unsafe) as arrays:
        return dict(arrays)


def _read_safetensors(path: StrPath, unsafe: bool) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


class _Unpickler(pickle._Unpickler):
    """Python's unpickler, restricted to the types in ``ALLOWED`` and ``INERT``.

    The one in Python: five bytes of a file make the memo of the one in C take 64 GB.
    """

    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        self.size = os.fstat(file.fileno()).st_size

    def find_class(self, module: str, name: str) -> Any:
        name = _full_name(module, name)
        if name not in ALLOWED and not name.startswith(INERT):
            raise pickle.UnpicklingError(f"GLOBAL {name}")
        return ALLOWED.get(name) or inert(name)

    # The next two have no hints, because the stubs lack what pickle._Unpickler has: stack, read, append.
    def load_build(self):
        if isinstance(self.stack[-2], type | types.FunctionType):  # whatever is set would outlive the file
            raise pickle.UnpicklingError("state for a type")
        super().load_build()

    def load_bytearray8(self):
        size = int.from_bytes(self.read(8), "little")
        if size > self.size:  # pickle would fill as much memory with zeros first
            raise pickle.UnpicklingError("more bytes than the file has")
        self.append(bytearray(self.read(size)))

    dispatch: ClassVar[dict[int, Callable[..., Any]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

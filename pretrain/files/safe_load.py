"""A checkpoint file of any format -> nested dictionaries of tensors, without running code that the file may hold."""

import errno
import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from . import StrPath
from .checkpoint_formats import RefusedError, checked_names, reader_of
from .stand_ins import Inert, PickledArray
from .text import shortened


def read(path: StrPath, unsafe: bool = False, remedy: str = "add --unsafe-load") -> Any:
    """Read a checkpoint of any origin.

    Args:
        path: a file of torch.save (.pth, .pt, .tar, .ckpt), .safetensors, .pkl or .npz.
        unsafe: unpickle whatever is in it, which can run code that the file brings along.
        remedy: what an error suggests for a trusted file whose content is refused.

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
            warnings.simplefilter("ignore")  # about old formats, which load or get one of the errors below
            return _compared(reader_of(path, head)(path, unsafe))
    except RefusedError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(_reason(head, error, remedy)) from None


def _compared(content: Any) -> Any:
    """The content of a checkpoint, after a converted one's weights are compared with their checksum."""
    if isinstance(content, dict) and dict.get(content, "__author__") == "loco-det" and "checksum" in content:
        if content["checksum"] != checksum(plain(content["model"])):
            raise RefusedError("a damaged checkpoint (checksum of its weights): convert or copy it again")
    return content


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256, in hexadecimal, of named numpy arrays: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def read_own(path: StrPath) -> dict[str, Any]:
    """Read a checkpoint that this project has written, and verify its checksums, which torch.load does not.

    Returns:
        Tensors, which stay in the file (memory-mapped) until they are used, and plain values.

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
            raise RefusedError("not a file of torch.save" if head else "the file is empty")
        checked_names(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RefusedError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(_reason(b"", error, None)) from None
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, expected a dictionary")
    return content


def plain(content: Any) -> Any:
    """What :func:`read` returns, with numpy arrays in place of :class:`PickledArray`, and {} for other stand-ins.

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


def _reason(head: bytes, error: Exception, remedy: str | None) -> str:
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

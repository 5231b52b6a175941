"""Files that are mistaken for checkpoints: archives, Git LFS pointers, web pages, HDF5.

Nothing is unpacked to the disk, and at most ``MOST_READ`` bytes of a compressed file are decompressed.
"""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from . import StrPath

CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors", ".pkl", ".npz", ".pyth", ".torch")
MOST_READ = 256 * 2**20  # decompressed bytes of a tar archive, which stores names and contents alternately
NAMED = 3  # names in a message
LONGEST = 100  # characters of a name in a message
# First bytes -> format, and what opens it; None: Python's standard library cannot
ARCHIVES: dict[bytes, tuple[str, Callable[..., Any] | None]] = {
    b"7z\xbc\xaf'\x1c": ("7-Zip", None),
    b"Rar!\x1a\x07": ("RAR", None),
    b"\x1f\x8b\x08": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("Zstandard", None),
}


def other_file(path: StrPath, head: bytes) -> str | None:
    """Say what a file is if it is no checkpoint.

    Args:
        path: the file.
        head: its first 40 bytes, or all of a shorter file.

    Returns:
        One line that also says what to do; None if the file may be a checkpoint, damaged or not.

    Raises:
        OSError: if the file cannot be read.
    """
    if head.startswith(b"version https://git-lfs"):
        return "not the checkpoint but Git LFS's pointer to it: run 'git lfs pull' in its repository, or download it"
    if re.match(rb"\s*<(!doctype\s+html|html|\?xml)", head, re.IGNORECASE):
        return "a web page, not a checkpoint (hosts send one if a download needs a login or consent): download it again"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras, TensorFlow), not a PyTorch checkpoint"
    if head.startswith(b"PK"):
        names = _names_in_zip(path)
        return None if names is None else _described("zip", names)
    kind, opener = next((found for magic, found in ARCHIVES.items() if head.startswith(magic)), ("", None))
    if kind and opener is None:
        return f"not a checkpoint but a {kind} archive: unpack it first, and name the checkpoint in it"
    if kind or _is_tar_header(path):
        return _compressed(path, kind, opener or open)
    return None


def _names_in_zip(path: StrPath) -> list[str] | None:
    """Names of the files in a zip archive; None if torch or numpy wrote it, or it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):  # the checkpoint's reader reports damage
        return None
    # One of these names identifies torch's archive: flipped bits may have changed the others
    torchs = any(re.search(r"/(data\.pkl|version|byteorder|data/\d+)$", name) for name in names)
    return None if torchs or (names and all(name.endswith(".npy") for name in names)) else names


def _is_tar_header(path: StrPath) -> bool:
    """Whether a file begins with a tar header."""
    with open(path, "rb") as file:
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block[257:262] != b"ustar":
        return False
    with suppress(tarfile.HeaderError):
        return bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    return False


def _compressed(path: StrPath, kind: str, opener: Callable[..., Any]) -> str:
    """A line on a tar archive or a compressed file; ``kind`` is its compression, "" if it has none."""
    label = f"{kind}-compressed tar" if kind else "tar"
    try:
        with opener(path, "rb") as file:
            names = _names_in_tar(file)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError):
        return f"not a checkpoint but a damaged {kind or 'tar'} archive: copy or download it again, then unpack it"
    if names is not None:
        return _described(label, names)
    inside = os.path.basename(str(path)).rpartition(".")[0] or "the file in it"
    return f"not a checkpoint but a {kind}-compressed file: unpack it first, and name {_short(inside)}"


def _names_in_tar(file: IO[bytes]) -> list[str] | None:
    """Names of a tar archive's files, up to the first few checkpoints; None if it is no tar archive."""
    names: list[str] = []
    try:
        # The stubs ask for a whole file object; mode "r|" only calls read().
        with tarfile.open(fileobj=_Limited(file), mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                if member.isfile():
                    names.append(member.name)
                if len(_checkpoints(names)) > NAMED:
                    break
    except tarfile.TarError:  # damaged from here on, above the limit, or no archive
        return names or None
    return names


class _Limited:
    """A file that ends after ``MOST_READ`` bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, MOST_READ

    def read(self, size: int) -> bytes:
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        return data


def _checkpoints(names: list[str]) -> list[str]:
    """The names that may be checkpoints; files that macOS adds (__MACOSX, ._name) are left out."""
    own = [name for name in names if not re.search(r"(^|/)(__MACOSX/|\._)", name)]
    return [name for name in own if name.lower().endswith(CHECKPOINTS)]


def _described(kind: str, names: list[str]) -> str:
    """A line on an archive with files of these names."""
    if not names:
        return f"not a checkpoint but an empty {kind} archive"
    found = _checkpoints(names)
    shown, more = (found or names)[:NAMED], len(found or names) - NAMED
    listed = ", ".join(map(_short, shown)) + (f" and {more} more" if more > 0 else "")
    if not found:
        return f"not a checkpoint but a {kind} archive, and none of its files has a checkpoint's name ({listed})"
    return f"not a checkpoint but a {kind} archive with {listed} in it: unpack it first, and name the checkpoint"


def _short(name: str) -> str:
    return repr(name if len(name) <= LONGEST else f"...{name[-LONGEST:]}")

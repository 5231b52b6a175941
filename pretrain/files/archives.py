"""What a file is that holds a checkpoint, or stands for one, but is none itself: an archive, a pointer, a web page.

Nothing is unpacked to the disk, and of what is compressed no more than ``MOST_READ`` bytes are looked at.
"""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from contextlib import suppress

CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors", ".pkl", ".npz", ".pyth", ".torch")
MOST_READ = 256 * 2**20  # decompressed bytes of a tar archive; the names stand between the contents
NAMED = 3  # names in a message
LONGEST = 100  # characters of a name in a message
# First bytes of archives and compressed files; None: Python's library cannot look into it
ARCHIVES = {
    b"7z\xbc\xaf'\x1c": ("7-Zip", None),
    b"Rar!\x1a\x07": ("RAR", None),
    b"\x1f\x8b\x08": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("Zstandard", None),
}


def other_file(path, head):
    """What a file is instead of a checkpoint, in a line that says what to do.

    Args:
        path: of the file.
        head: its first bytes, 40 or fewer if it is shorter.

    Returns:
        str, or None if it may be a checkpoint, a damaged one too.
    """
    if head.startswith(b"version https://git-lfs"):
        return "not the checkpoint but Git LFS's pointer to it: run 'git lfs pull' in its repository, or download it"
    if re.match(rb"\s*<(!doctype\s+html|html|\?xml)", head, re.IGNORECASE):
        return "a web page, no checkpoint (many hosts answer so where one has to confirm or log in): download it again"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file, as Keras and TensorFlow write, no PyTorch checkpoint"
    if head.startswith(b"PK"):
        names = _names_in_zip(path)
        return None if names is None else _described("zip", names)
    kind, opener = next((found for magic, found in ARCHIVES.items() if head.startswith(magic)), (None, None))
    if kind and opener is None:
        return f"no checkpoint but a {kind} archive: unpack it first, and name the checkpoint in it"
    if kind or _is_tar_header(path):
        return _compressed(path, kind, opener or open)
    return None


def _names_in_zip(path):
    """Names of the files in a zip archive; None if it is one of torch's or numpy's, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):  # a damaged checkpoint is told by its reader
        return None
    # Of torch's archive any of these shows what it was meant to be, though a flipped bit may have renamed the others
    torchs = any(re.search(r"/(data\.pkl|version|byteorder|data/\d+)$", name) for name in names)
    return None if torchs or (names and all(name.endswith(".npy") for name in names)) else names


def _is_tar_header(path):
    """Whether a file begins as a tar archive does."""
    with open(path, "rb") as file:
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block[257:262] != b"ustar":
        return False
    with suppress(tarfile.HeaderError):
        return bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    return False


def _compressed(path, kind, opener):
    """What a tar archive is, or a compressed file, by its beginning."""
    label = f"{kind}-compressed tar" if kind else "tar"
    try:
        with opener(path, "rb") as file:
            names = _names_in_tar(file)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError):
        return f"no checkpoint but a damaged {kind or 'tar'} archive: copy or download it again, then unpack it"
    if names is not None:
        return _described(label, names)
    inside = os.path.basename(str(path)).rpartition(".")[0] or "the file in it"
    return f"no checkpoint but a {kind}-compressed file: unpack it first, and name {_short(inside)}"


def _names_in_tar(file):
    """Names of a tar archive's files, until a few checkpoints are found; None if it is no tar archive."""
    names = []
    try:
        with tarfile.open(fileobj=_Limited(file), mode="r|") as archive:
            for member in archive:
                if member.isfile():
                    names.append(member.name)
                if len(_checkpoints(names)) > NAMED:
                    break
    except tarfile.TarError:  # damaged from here on, beyond the limit, or none at all
        return names or None
    return names


class _Limited:
    """A file that ends after ``MOST_READ`` bytes."""

    def __init__(self, file):
        self.file, self.left = file, MOST_READ

    def read(self, size):
        data = self.file.read(min(size, self.left))
        self.left -= len(data)
        return data


def _checkpoints(names):
    """Those of a list of names that may be checkpoints; what macOS adds (__MACOSX, ._name) is none."""
    own = [name for name in names if not re.search(r"(^|/)(__MACOSX/|\._)", name)]
    return [name for name in own if name.lower().endswith(CHECKPOINTS)]


def _described(kind, names):
    """A line on an archive with files of these names."""
    if not names:
        return f"no checkpoint but an empty {kind} archive"
    found = _checkpoints(names)
    shown, more = (found or names)[:NAMED], len(found or names) - NAMED
    listed = ", ".join(map(_short, shown)) + (f" and {more} more" if more > 0 else "")
    if not found:
        return f"no checkpoint but a {kind} archive, and none of its files has a checkpoint's name ({listed})"
    return f"no checkpoint but a {kind} archive with {listed} in it: unpack it first, and name the checkpoint"


def _short(name):
    return repr(name if len(name) <= LONGEST else f"...{name[-LONGEST:]}")

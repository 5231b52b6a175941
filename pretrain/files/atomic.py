"""Files that are written whole or not at all, errors that name them, and the temporary files of killed runs."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import socket
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from ..processes.lifetime import is_running
from . import StrPath

Content: TypeAlias = str | bytes | Callable[[BinaryIO], object]  # a function writes into the open file

# Names of temporary_name(): group 1 is the machine and group 2 the process that writes the file
TEMPORARY = re.compile(r"\..+?\.(?:([0-9a-f]{8})-(\d{1,18})\.)?[0-9a-f]{8}\.tmp(?:\.\w+)?")
OLDER = re.compile(  # temporary names of version 0.1
    r"checkpoint\.tmp"
    r"|(model_(\d+|final)\.pth|last_checkpoint|config\.yaml|results\.json|features\.pth|(losses|probe)\.png)\.tmp\d+"
    r"|\.(results\.json|analysis\.json|analysis\.png)\.\d+\.tmp"
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk is full, or a quota or a limit of size is reached


def write_whole(path: StrPath, content: Content) -> None:
    """Write a file whole or not at all, synced to the disk; missing folders are created.

    Args:
        path: the file. A pipe or a device is written to directly.
        content: text, bytes, or a function that writes into an open binary file.

    Raises:
        OSError: naming ``path``, if it cannot be written; an existing file stays as it was.
    """
    with named_errors(path):
        device = os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path)
    if device:  # such as /dev/null, which a rename would replace
        with named_errors(path), open(path, "wb") as file:
            _fill(file, content)
        return
    with whole_file(path) as temporary:
        write_new(temporary, content, path)


def write_new(path: StrPath, content: Content, name: StrPath | None = None) -> None:
    """Write a file that does not exist yet, synced to the disk.

    Args:
        path: the file.
        content: as in :func:`write_whole`.
        name: the path that errors name; None: ``path``.

    Raises:
        OSError: if it exists or cannot be written; a part of it may then be on the disk.
    """
    with named_errors(name or path), open(path, "xb") as file:
        _fill(file, content)
        os.fsync(file.fileno())


def _fill(file: BinaryIO, content: Content) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)
    file.flush()


def write_json(path: StrPath, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file as :func:`write_whole` does.

    Raises:
        OSError: naming ``path``, if it cannot be written.
        ValueError: if a number is not finite, which JSON cannot express.
    """
    write_whole(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_file(path: StrPath) -> Iterator[Path]:
    """A context with a temporary file, which is renamed to ``path`` at its end, or removed after an error.

    Yields:
        The temporary file's path, beside ``path`` and with its suffix; the file does not exist yet.

    Raises:
        OSError: naming ``path``.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with named_errors(path):
            make_folder(path.parent)
            remove_orphans(path.parent)
            yield temporary
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # also where its folder is a file: the error that matters is another one
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; OSError if that cannot be, as where one of them is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # which says nothing of the file that was to be written
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def missing_folders(path: StrPath) -> list[Path]:
    """A folder and those above it that are not there, the lowest first; for :func:`remove_empty`."""
    folder = Path(os.path.abspath(path))
    return [part for part in (folder, *folder.parents) if not os.path.lexists(part)]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the lowest first, up to one that is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # somebody has begun there
            return


def temporary_name(path: StrPath) -> Path:
    """A unique path beside ``path``; its name holds the machine and the process, for :func:`remove_orphans`."""
    stem = Path(path).stem[:180]  # file systems allow 255 bytes
    return Path(path).with_name(f".{stem}.{_machine()}-{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp{Path(path).suffix}")


@functools.cache
def _machine() -> str:
    """8 hex digits that identify this machine's, or this container's, set of process ids."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def remove_leftovers(folder: StrPath) -> None:
    """Remove the temporary files of killed processes; the caller holds the folder's lock."""
    _remove(folder, lambda match: True)


@functools.cache
def remove_orphans(folder: StrPath) -> None:
    """Remove the temporary files of this machine's ended processes, once for each folder.

    For folders without a lock, in which other processes may be writing.
    """
    _remove(folder, lambda match: match and match[1] == _machine() and not is_running(int(match[2])))


def _remove(folder: StrPath, is_left: Callable[[re.Match[str] | None], object]) -> None:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = TEMPORARY.fullmatch(entry.name)
            if (match or OLDER.fullmatch(entry.name)) and is_left(match) and entry.is_file():
                with contextlib.suppress(OSError):
                    os.remove(entry.path)


@contextlib.contextmanager
def named_errors(path: StrPath) -> Iterator[None]:
    """A context whose errors of writing name ``path``: a full disk and torch name no file, or a temporary one.

    Raises:
        OSError: with the original ``errno`` where there is one.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if str(error).startswith("DataLoader worker"):  # torch's SIGCHLD handler raises it anywhere in the process
            raise
        cause = error if isinstance(error, OSError) else error.__context__  # torch chains its RuntimeError to it
        if isinstance(cause, OSError) and cause.errno:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise OSError(f"cannot write {path}: {' '.join(str(error).split())}") from error


def sha256_of(path: StrPath) -> str:
    """SHA-256 of a file, in hexadecimal; OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: BinaryIO) -> str:
    """For Python 3.10, which has no hashlib.file_digest."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def text_of(path: StrPath) -> str:
    """The text of a file; "" if there is no such file."""
    path = Path(path)
    return path.read_text(errors="replace") if path.is_file() else ""


def _sync_folder(folder: Path) -> None:
    """Sync a folder, and so a renamed file's name, to the disk; some file systems cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

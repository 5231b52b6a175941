"""Files that are complete or not there, errors that name them, and what killed runs have left behind."""

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
from pathlib import Path

from ..processes.lifetime import is_running

# names of temporary_name(); the first group is the machine and the second the process that writes the file
TEMPORARY = re.compile(r"\..+?\.(?:([0-9a-f]{8})-(\d{1,18})\.)?[0-9a-f]{8}\.tmp(?:\.\w+)?")
OLDER = re.compile(  # those of version 0.1, and no others that look like them
    r"checkpoint\.tmp"
    r"|(model_(\d+|final)\.pth|last_checkpoint|config\.yaml|results\.json|features\.pth|(losses|probe)\.png)\.tmp\d+"
    r"|\.(results\.json|analysis\.json|analysis\.png)\.\d+\.tmp"
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of errors: the disk, a quota, a limit is reached


def write_whole(path, content):
    """Write a file whole or not at all, down to the disk; its folder is made if need be.

    Args:
        path: of the file; a pipe or a device is written to as it is.
        content: str, bytes, or a function that writes into an open binary file.

    Raises:
        OSError: naming ``path``, if it cannot be written; what was there stays.
    """
    with named_errors(path):
        device = os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path)
    if device:  # such as /dev/null: renaming a file to it would replace it
        with named_errors(path), open(path, "wb") as file:
            _fill(file, content)
        return
    with whole_file(path) as temporary:
        write_new(temporary, content, path)


def write_new(path, content, name=None):
    """Write a file that is not there yet, down to the disk.

    Args:
        path, content: as of :func:`write_whole`.
        name: that errors name instead of ``path``.

    Raises:
        OSError: if it cannot be written; a part of it may be there.
    """
    with named_errors(name or path), open(path, "xb") as file:
        _fill(file, content)
        os.fsync(file.fileno())


def _fill(file, content):
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)
    file.flush()


def write_json(path, content, indent=2):
    """Write a JSON file as :func:`write_whole` does; ValueError if a number is not finite, which JSON does not have."""
    write_whole(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_file(path):
    """Give the name of a temporary file, which becomes ``path`` if the context ends well, and is removed otherwise.

    Yields:
        Path: of a file beside ``path`` that is not there yet, with the same suffix.

    Raises:
        OSError: naming ``path``.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_orphans(path.parent)
            yield temporary
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path):
    """A name beside ``path`` that no other file has and that says who is writing, for :func:`remove_leftovers`."""
    stem = Path(path).stem[:180]  # a name of 255 bytes would grow too long
    return Path(path).with_name(f".{stem}.{_machine()}-{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp{Path(path).suffix}")


@functools.cache
def _machine():
    """By what the process ids of this machine, or of this container, are told from those of others: 8 hex digits."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def remove_leftovers(folder):
    """Remove the temporary files that a killed process has left. To be called by who has the folder's lock."""
    _remove(folder, lambda match: True)


@functools.cache
def remove_orphans(folder):
    """Remove the temporary files of processes of this machine that have ended, once for each folder: for folders that
    nobody locks, where others may be writing."""
    _remove(folder, lambda match: match and match[1] == _machine() and not is_running(int(match[2])))


def _remove(folder, is_left):
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = TEMPORARY.fullmatch(entry.name)
            if (match or OLDER.fullmatch(entry.name)) and is_left(match) and entry.is_file():
                with contextlib.suppress(OSError):
                    os.remove(entry.path)


@contextlib.contextmanager
def named_errors(path):
    """Say of which file an error of writing is: neither a full disk nor torch does, and no temporary file is meant.

    Raises:
        OSError: with the number of the error that it was.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if str(error).startswith("DataLoader worker"):  # torch's handler of SIGCHLD raises it wherever the process is
            raise
        cause = error if isinstance(error, OSError) else error.__context__  # of torch's RuntimeError: what it met
        if isinstance(cause, OSError) and cause.errno:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise OSError(f"cannot write {path}: {' '.join(str(error).split())}") from error


def sha256_of(path):
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file):
    """For Python 3.10, which has no hashlib.file_digest."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def text_of(path):
    """The text of a file, empty if there is none."""
    path = Path(path)
    return path.read_text(errors="replace") if path.is_file() else ""


def _sync_folder(folder):
    """Bring a new name down to the disk; some file systems cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""One run at a time in a folder: a lock that the system releases when its process ends."""

import atexit
import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO

from . import StrPath
from .atomic import FULL, remove_leftovers

logger = logging.getLogger(__name__)
NAME = ".lock"
HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_held: dict[str, IO[str]] = {}  # real path of a folder -> the open file that this process has locked


@atexit.register
def unlock_all() -> None:
    """Release all locks of this process."""
    for folder in list(_held):
        unlock_folder(folder)


def lock_folder(folder: StrPath, waiting: Callable[[str], object] | None = None) -> None:
    """Lock a folder for this process, and remove the temporary files that killed processes have left in it.

    The lock is a POSIX one (fcntl): it works on file servers, too, ends with the process, and is not inherited by
    forked children. The lock file names its owner and is removed on release. Locking a folder twice has no effect.
    Where the file system has no locks, a warning is logged instead.

    Args:
        folder: created if it is missing.
        waiting: another process that has the lock is waited for, after a call of this with words that name it; None:
            it is an error.

    Raises:
        ValueError: if another process has the lock and is not waited for, or the folder's name is empty.
        OSError: if the folder cannot be written to, or is a file.
    """
    if not os.fspath(folder):
        raise ValueError("OUTPUT_DIR is empty: name a folder")
    path = os.path.join(folder, NAME)
    try:
        os.makedirs(folder, exist_ok=True)
        key = os.path.realpath(folder)
        if key in _held:
            return
        file = open(path, "a+")  # open as long as the lock is held
    except OSError as error:
        raise _why_not(folder, error) from error
    try:
        _lock(file, waiting)
        if not _is_at(file, path):  # the last owner has just removed the file
            file.close()
            lock_folder(folder, waiting)
            return
    except OSError as error:
        owner = _owner(file)
        file.close()
        if error.errno in HELD_BY_ANOTHER:
            raise ValueError(
                f"{folder}: another run{owner} uses this folder: wait until it ends, or set another OUTPUT_DIR"
            ) from None
        logger.warning(f"{path}: no locks on this file system ({error.strerror}): start no second run in this folder")
        return
    _held[key] = file
    now = datetime.datetime.now().isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # on a full disk the lock works without its owner's name
        file.seek(0)
        file.truncate()
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": now}, file)
        file.flush()
    remove_leftovers(folder)


def unlock_folder(folder: StrPath) -> None:
    """Release this process's lock and remove its file; nothing happens if the folder is not locked."""
    file = _held.pop(os.path.realpath(folder), None)
    if file:
        with contextlib.suppress(OSError):
            os.remove(os.path.join(folder, NAME))
        file.close()


def _lock(file, waiting):
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not waiting or error.errno not in HELD_BY_ANOTHER:
            raise
        waiting(_owner(file))
        fcntl.lockf(file, fcntl.LOCK_EX)


def _why_not(folder: StrPath, error: OSError) -> OSError:
    """The error of a folder that cannot be made or written to, for one who has named it as OUTPUT_DIR."""
    if error.errno in FULL:
        return OSError(error.errno, error.strerror, str(folder))
    paths = [os.path.relpath(folder), *map(os.path.relpath, Path(os.path.abspath(folder)).parents)]
    if file := next((path for path in paths if os.path.isfile(path)), None):
        below = "" if file == paths[0] else f"{file} "
        return NotADirectoryError(f"OUTPUT_DIR {folder}{': ' if below else ' '}{below}is a file, name a folder")
    return type(error)(f"OUTPUT_DIR {folder} cannot be written: {error.strerror}")


def _is_at(file: IO[str], path: str) -> bool:
    """Whether an open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(file: IO[str]) -> str:
    """The lock's owner, in words for a message; "" if the file does not name it."""
    try:
        file.seek(0)
        owner = json.load(file)
        return f" (process {owner['process']:d} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""

"""One run at a time in a folder: a lock that ends with its process, however that ends."""

import atexit
import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket

from .atomic import named_errors, remove_leftovers

logger = logging.getLogger(__name__)
NAME = ".lock"
HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_held = {}  # real path of a folder -> the open file with this process's lock


@atexit.register
def unlock_all():
    """Give all locks of this process back."""
    for folder in list(_held):
        unlock_folder(folder)


def lock_folder(folder):
    """Lock a folder for this process, and remove what a killed one has left in it.

    The lock is POSIX's (fcntl), which file servers keep, too, and the system drops when the process ends; forked
    children do not have it. The file says who has the lock, and goes when it is given back. A folder that this
    process has locked already stays so.

    Where the file system has no locks, a warning says that two runs would not be told apart.

    Args:
        folder: made if need be.

    Raises:
        ValueError: if another process has it.
        OSError: if nothing can be written in the folder.
    """
    path = os.path.join(folder, NAME)
    with named_errors(path):
        os.makedirs(folder, exist_ok=True)
        key = os.path.realpath(folder)
        if key in _held:
            return
        file = open(path, "a+")  # it stays open as long as the lock is held
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(file, path):  # who had it has removed the file meanwhile
            file.close()
            return lock_folder(folder)
    except OSError as error:
        owner = _owner(file)
        file.close()
        if error.errno in HELD_BY_ANOTHER:
            raise ValueError(
                f"{folder}: another run{owner} is at work in this folder: wait for its end, or name another OUTPUT_DIR"
            ) from None
        logger.warning(f"{path}: no locks on this file system ({error.strerror}): start no second run in this folder")
        return
    _held[key] = file
    now = datetime.datetime.now().isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # a full disk; who has the lock is a courtesy
        file.seek(0)
        file.truncate()
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": now}, file)
        file.flush()
    remove_leftovers(folder)


def unlock_folder(folder):
    """Give the lock of this process back, and remove its file; nothing happens where it has none."""
    file = _held.pop(os.path.realpath(folder), None)
    if file:
        with contextlib.suppress(OSError):
            os.remove(os.path.join(folder, NAME))
        file.close()


def _is_at(file, path):
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(file):
    """Who has the lock, in words for a message; "" if the file does not say."""
    try:
        file.seek(0)
        owner = json.load(file)
        return f" (process {owner['process']:d} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""

"""From what a user names as a checkpoint to a local file."""

import difflib
import os
import re

from pretrain.files import StrPath
from pretrain.files.remote import is_remote, local_copy

from .published import Published, published_checkpoints

ADDRESS = re.compile(r"[a-zA-Z][\w+.-]*://")


def local_checkpoint(name: StrPath, by_name: bool = True) -> StrPath:
    """The local file of a checkpoint, downloaded to the cache if that is where it has to come from.

    Args:
        name: a path; an address with ``https://``, ``http://``, ``file://`` or ``hf://``; a name of
            :func:`published_checkpoints`. A path that is there comes first.
        by_name: whether it may be such a name.

    Returns:
        A path as it was given, or that of the local copy.

    Raises:
        FileNotFoundError: if there is no such file; one line.
        ValueError, OSError: as :func:`pretrain.files.remote.local_copy`.
    """
    entry = check_named(name, by_name)
    if is_remote(name):
        listed = next((known for known in published_checkpoints().values() if known.url == os.fspath(name)), None)
        return local_copy(os.fspath(name), listed.expected if listed else None)
    return local_copy(entry.url, entry.expected) if entry else name


def check_named(name: StrPath, by_name: bool = True) -> Published | None:
    """Refuse what names no checkpoint; nothing is downloaded.

    Args:
        name, by_name: as :func:`local_checkpoint`.

    Returns:
        The published checkpoint of that name; None for a path or an address.

    Raises:
        FileNotFoundError: if it is neither a path that is there, nor an address, nor a name.
    """
    text = os.fspath(name)
    if is_remote(text) or os.path.lexists(text):
        return None
    names = published_checkpoints() if by_name else {}
    if text in names:
        return names[text]
    if ADDRESS.match(text):
        hint = ": addresses that can be opened begin with https://, http://, file:// or hf://"
    elif near := difflib.get_close_matches(text, names, n=1, cutoff=0.75):
        hint = f", and no published checkpoint: did you mean {near[0]}?"
    else:
        hint = ""
    raise FileNotFoundError(f"{text}: no such file{hint}")

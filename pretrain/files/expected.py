"""Refusal of files and folders of data that are not there, or are the other of the two."""

import os

from . import StrPath


def expect_folder(folder: StrPath, what: str = "folder of images", key: str = "") -> None:
    """Refuse what is no folder.

    Args:
        folder: its path.
        what: it is, in words.
        key: of the config that names it, for messages.

    Raises:
        FileNotFoundError: if it is not there.
        NotADirectoryError: if it is a file.
    """
    if os.path.isfile(folder):
        raise NotADirectoryError(f"{_named(folder, key)} is a file, expected a {what}")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{_named(folder, key)}: no such {what}{_where(folder)}")


def expect_file(path: StrPath, what: str, kind: str, key: str = "") -> None:
    """Refuse what is no file.

    Args:
        path: its path.
        what: it is, in words.
        kind: of file, such as "JSON file".
        key: of the config that names it, for messages.

    Raises:
        FileNotFoundError: if it is not there.
        IsADirectoryError: if it is a folder.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"{_named(path, key)} is a folder, expected a {kind}")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{_named(path, key)}: no such {what}{_where(path)}")


def _named(path, key):
    return f"{key} {path}".strip()


def _where(path):
    """What a relative path is relative to."""
    return "" if os.path.isabs(path) else f" in the folder {os.getcwd()}"

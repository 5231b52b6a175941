"""The image files and class folders below a folder, what in it is ignored, and data that are not there."""

import hashlib
import logging
import os
from collections.abc import Iterable

from . import StrPath

logger = logging.getLogger(__name__)
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SYSTEM = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # what archives, servers and systems put beside images


def list_images(folder: StrPath, key: str = "") -> list[str]:
    """Paths of all image files below a folder, sorted; the log says what is left out, and why.

    Links are followed. Left out are hidden files and folders (``.ipynb_checkpoints``, ``._photo.jpg``), those of
    archives and systems (``__MACOSX``), files without one of ``EXTENSIONS``, pipes and devices, broken links, and
    links to a folder that is listed already.

    Args:
        folder: an image folder, with or without sub-folders; the names of sub-folders do not matter.
        key: of the config that names it, for messages.

    Raises:
        FileNotFoundError: if the folder is missing or holds no images.
    """
    folder = str(folder)
    if not folder:
        raise FileNotFoundError(f"{key} is empty: name a folder of images")
    expect_folder(folder, key=key)
    images: list[str] = []
    left_out: dict[str, list[str]] = {}
    seen: set[str] = set()

    def leave_out(why: str, path: str) -> None:
        left_out.setdefault(why, []).append(os.path.relpath(path, folder))

    for root, dirs, files in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in seen:
            dirs.clear()
            leave_out("folders that are listed already, through a link", root)
            continue
        seen.add(os.path.realpath(root))
        for name in [name for name in dirs if is_hidden(name)]:
            dirs.remove(name)
            leave_out("hidden or of the system", os.path.join(root, name))
        dirs.sort()
        for name in sorted(files):
            path = os.path.join(root, name)
            if is_hidden(name):
                leave_out("hidden or of the system", path)
            elif not name.lower().endswith(EXTENSIONS):
                leave_out("not images", path)
            elif not os.path.isfile(path):
                leave_out("links to nothing" if os.path.islink(path) else "not files", path)
            else:
                images.append(path)
    for why, paths in left_out.items():
        shown = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
        logger.info(f"{folder}: {len(paths)} left out ({why}): {shown}")
    if not images:
        raise FileNotFoundError(f"{folder}: no images ({', '.join(EXTENSIONS)}) in this folder or below it")
    return images


def names_digest(paths: Iterable[str], folder: StrPath) -> str:
    """SHA-256, in hexadecimal, of the images' names relative to their folder, which may move, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.removeprefix(str(folder)).lstrip(os.sep)}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def list_classes(folder: StrPath) -> list[str]:
    """Names of the sub-folders, one for each class, sorted; the log names hidden ones, which are left out."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if hidden := [name for name in names if is_hidden(name)]:
        logger.info(f"{folder}: no classes, but hidden or of the system: {', '.join(hidden)}")
    return [name for name in names if not is_hidden(name)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or put there by a system."""
    return name.startswith(".") or name in SYSTEM


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

"""Checks of image files: whether they exist, are readable, and have the size that the annotations give."""

import functools
import os
import unicodedata
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from pretrain.files.images import UNREADABLE, image_info, read_image

from .findings import Report


def check_files(
    report: Report, folder: str, names: Iterable[str], allow_outside: bool = False, links: bool = False
) -> list[str]:
    """Check that every name is a file below the folder.

    Each folder is listed once: one system call per file would take minutes on network drives.

    Args:
        report: gets ``image_missing``, with the file that is meant if the names differ only in case or Unicode form;
            ``image_outside``; and ``image_elsewhere``.
        folder: that the names are relative to.
        names: of image files, as in the annotations.
        allow_outside: whether names may lead out of the folder.
        links: report symbolic links that lead out of the folder.

    Returns:
        The names of the files that exist and are allowed.
    """
    listed: dict[str, _Folder] = {}
    good, root = [], os.path.realpath(folder)
    for name in names:
        path = os.path.join(folder, name)
        outside = not is_inside(folder, name)
        if outside and not allow_outside:
            report.add("image_outside", name)
            continue
        parent, base = os.path.split(path)
        if parent not in listed:
            listed[parent] = _Folder(parent)
        if base not in listed[parent].files:
            report.add("image_missing", functools.partial(_missing, listed[parent], folder, name))
            continue
        good.append(name)
        target = listed[parent].target(base) if links or outside else path
        if outside or links and not _is_below(root, target):
            report.add("image_elsewhere", f"{name}: {target}")
    return good


def is_inside(folder: str, name: str) -> bool:
    """Whether a file name, which may be absolute or have "..", stays in the folder; links are not followed."""
    if not os.path.isabs(name) and ".." not in name:
        return True
    folder = os.path.abspath(folder)
    return _is_below(folder, os.path.normpath(os.path.join(folder, name)))


def _is_below(folder, path):
    return path.startswith(os.path.join(folder, ""))


class _Folder:
    """The names in a folder; none if it is missing or cannot be read.

    Attributes:
        files: names of files and of links to files.
        links: names of links of any kind.
    """

    def __init__(self, path: str) -> None:
        self.path, self.real = path, path
        self.files: set[str] = set()
        self.links: set[str] = set()
        try:
            self.real = os.path.realpath(path)
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        self.links.add(entry.name)
                    if entry.is_file():
                        self.files.add(entry.name)
        except (OSError, ValueError):  # ValueError: a name with a null byte
            pass

    def target(self, name: str) -> str:
        """The path of a file with all links resolved."""
        path = os.path.join(self.real, name)
        return os.path.realpath(path) if name in self.links else path

    def similar(self, name: str) -> str | None:
        """The file whose name differs from this one only in case or Unicode form, or None."""
        return self._plain.get(_plain(name))

    @functools.cached_property
    def _plain(self):
        return {_plain(name): name for name in self.files}


def _missing(listed, root, name):
    return f"{os.path.join(root, name)}{_why_missing(listed, root, name)}"


def _why_missing(listed, root, name):
    """Why a file is missing, as the end of a sentence; empty if nothing is known.

    Args:
        listed: the ``_Folder`` in which it would be.
        root: folder that the names are relative to.
        name: as in the annotations.
    """
    base = os.path.basename(name)
    similar, slashes = listed.similar(base), name.replace("\\", "/")
    if base in listed.links:
        return f" is a link to {os.readlink(os.path.join(listed.path, base))}, which is not a file"
    if similar and _letters(similar) == _letters(base):
        return (
            f": the folder has {similar!a}, the annotations {base!a}, the same letters in another encoding or "
            "Unicode form: rename the file, or write its name as the folder has it"
        )
    if similar:
        return f": the folder has {similar}, which differs in upper and lower case"
    if slashes != name and _is_file(root, slashes):
        return ": there is one with / for \\: write it so"
    if base != name and _is_file(root, base):
        return f": {root} has {base}: leave out the folder in file_name"
    return ""


def _is_file(folder, name):
    return is_inside(folder, name) and os.path.isfile(os.path.join(folder, name))


def _letters(name):
    """A file name in Unicode form NFC; one that is not UTF-8 is decoded as Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:  # Python gives bytes that are not UTF-8 as surrogates
        name = os.fsencode(name).decode("latin-1")
    return unicodedata.normalize("NFC", name)


def _plain(name):
    return _letters(name).casefold()


def check_images(
    report: Report, folder: str, sizes: Mapping[str, tuple[int, int] | None], decode: bool = False
) -> None:
    """Open every image and compare its size; with a progress bar on a terminal.

    Args:
        report: gets ``image_unreadable``, ``image_truncated``, ``image_size``, ``image_16_bit`` and ``exif``.
        folder: that the names are relative to.
        sizes: {file name: (width, height) in pixels, or None if any size is valid}.
        decode: read all pixels, which finds truncated files, and not only the header.
    """

    def one(item):
        return item, _look(os.path.join(folder, item[0]), decode)

    workers = min(8, 2 * (os.cpu_count() or 1))  # threads: Pillow's decoders and reading release the GIL
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(one, sizes.items())
        for (name, expected), (info, problem) in tqdm(
            found, total=len(sizes), desc="images", unit="image", disable=None, leave=False
        ):
            if problem:
                report.add("image_truncated" if info else "image_unreadable", f"{name}: {problem}")
            if info and info.orientation != 1:
                report.add("exif", f"{name}: orientation {info.orientation}")
            if info and info.mode.startswith("I"):
                report.add("image_16_bit", f"{name}: mode {info.mode}")
            if info and expected and info[:2] != tuple(expected):
                there, said = (f"{width}x{height}" for width, height in (info[:2], expected))
                report.add("image_size", f"{name}: {there}, annotated as {said} (width x height)")


def _look(path, decode):
    """The header of an image file, None if it cannot be read, and what is wrong with the file, None if nothing is."""
    info = None
    try:
        info = image_info(path)
        if decode:
            read_image(path)
    except UNREADABLE as error:
        return info, " ".join(str(error).split()).removeprefix(f"{path}: ").replace(repr(path), "it")
    return info, None

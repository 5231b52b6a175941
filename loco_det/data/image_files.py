"""Checks of image files: are they there, of the size that the annotations say, and readable."""

import os
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from pretrain.engine.images import UNREADABLE, image_info, read_image


def check_files(report, folder, names):
    """Add ``image_missing`` for every name that is not a file below the folder; returns the names that are.

    Each folder is listed once: a question for every file takes minutes on network drives.
    """
    listed = {}
    missing = set()
    for name in names:
        parent, base = os.path.split(os.path.join(folder, name))
        if parent not in listed:
            listed[parent] = _files(parent)
        if base not in listed[parent]:
            missing.add(name)
            report.add("image_missing", os.path.join(parent, base))
    return [name for name in names if name not in missing]


def _files(folder):
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def check_images(report, folder, sizes, decode=False):
    """Open every image and compare its size; with a progress bar on a terminal.

    Args:
        report: gets ``image_unreadable``, ``image_truncated``, ``image_size``, ``image_16_bit`` and ``exif``.
        folder: that the names start from.
        sizes: {file name: (width, height) in pixels, or None for whatever it is}.
        decode: read all pixels, which finds files that are cut short, and not the header only.
    """

    def one(item):
        return item, _look(os.path.join(folder, item[0]), decode)

    workers = min(8, 2 * (os.cpu_count() or 1))  # threads: reading waits, Pillow's decoders let go
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
    """Of an image file: what its header says or None, and its problem in words or None."""
    info = None
    try:
        info = image_info(path)
        if decode:
            read_image(path)
    except UNREADABLE as error:
        return info, " ".join(str(error).split()).removeprefix(f"{path}: ").replace(repr(path), "it")
    return info, None

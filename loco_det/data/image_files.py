"""Checks of image files: are they there, of the size that the annotations say, and readable."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from tqdm import tqdm

EXIF_ORIENTATION = 0x0112  # tag; 1 is upright, 5 to 8 swap width and height


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
        report: gets ``image_unreadable``, ``image_truncated``, ``image_size`` and ``exif``.
        folder: that the names start from.
        sizes: {file name: (width, height) in pixels, or None for whatever it is}.
        decode: read all pixels, which finds files that are cut short, and not the header only.
    """

    def one(item):
        return item, _look(os.path.join(folder, item[0]), decode)

    workers = min(8, 2 * (os.cpu_count() or 1))  # threads: reading waits, Pillow's decoders let go
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # of doubtful EXIF data and large images
        found = pool.map(one, sizes.items())
        for (name, expected), (size, orientation, problem) in tqdm(
            found, total=len(sizes), desc="images", unit="image", disable=None, leave=False
        ):
            if problem:
                report.add("image_truncated" if size else "image_unreadable", f"{name}: {problem}")
            if size and orientation not in (None, 1):
                report.add("exif", f"{name}: orientation {orientation}")
                if orientation in (5, 6, 7, 8):
                    size = size[::-1]
            if size and expected and size != tuple(expected):
                there, said = (f"{width}x{height}" for width, height in (size, expected))
                report.add("image_size", f"{name}: {there}, annotated as {said} (width x height)")


def _look(path, decode):
    """Of an image file: stored (width, height) or None, EXIF orientation or None, problem in words or None."""
    size = orientation = None
    try:
        with Image.open(path) as image:
            size, orientation = image.size, image.getexif().get(EXIF_ORIENTATION)
            if decode:
                image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return size, orientation, " ".join(str(error).split()).replace(repr(path), "it")
    return size, orientation, None

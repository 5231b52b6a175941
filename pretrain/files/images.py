"""The one reader of image files, and the one list of those in a folder: what is learned is what is detected on."""

import functools
import hashlib
import logging
import os
import stat
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

# Palette images with transparency, doubtful EXIF data and the like are still readable
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

logger = logging.getLogger(__name__)
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SYSTEM = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # what archives, servers and systems put beside images
UNREADABLE = (OSError, ValueError)  # what read_image and image_info raise
EXIF_ORIENTATION = 0x0112  # tag; 1 is upright, 5 to 8 swap width and height
# How rows and columns become upright: whether to swap the axes first, and then the steps along both
TURNS = {
    2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1), 5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1),
    8: (True, -1, 1),
}  # fmt: skip
UNKNOWN_RANGE = ("I", "F", "I;32", "F;32")  # modes whose pixels have no largest value
SIXTEEN_BITS = ("PNG", "PPM")  # formats in which Pillow calls 16 bits "I": always, or in older versions
RUN_PROGRAMS = ("EPS",)  # formats that Pillow has another program read, Ghostscript, which runs the file
STRIP = 2**24  # pixels that are converted at a time, so that a large image takes its own memory about twice


class ImageInfo(NamedTuple):
    """What the header of an image file says: size in pixels when upright, EXIF orientation, Pillow's mode."""

    width: int
    height: int
    orientation: int
    mode: str


def read_image(path):
    """Decode an image, upright.

    The EXIF orientation is applied, as in Detectron2; gray values become three equal channels; 16 bits are scaled to 8
    (their upper half); transparency is left out; of several pictures in a file the first is taken.

    Args:
        path: of a file in any format that Pillow itself reads.

    Returns:
        ndarray: (H, W, 3) uint8, RGB.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        ValueError: if it is no image, damaged, cut short, above Pillow's limit of pixels, or of pixels whose range is
            not known (32-bit integers and floats); one line that begins with the path.
    """
    return _with_image(path, _pixels)


def image_info(path):
    """What :func:`read_image` would give, by the header alone.

    Returns:
        ImageInfo

    Raises:
        OSError, ValueError: as :func:`read_image`, as far as the header tells.
    """

    def look(image, _):
        _refuse_unknown_range(image)
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        turned = image.format != "TIFF" and TURNS.get(orientation, (False,))[0]  # Pillow turns TIFF by itself
        width, height = image.size[::-1] if turned else image.size
        return ImageInfo(width, height, orientation, image.mode)

    return _with_image(path, look)


def _with_image(path, function):
    """``function(Pillow image, its open file)``; whatever a damaged file makes Pillow raise is a ValueError."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise ValueError(f"{path}: no file, but a folder, a pipe or a device")
    with open(path, "rb") as file:
        try:
            with Image.open(file, formats=_formats()) as image:
                return function(image, file)
        except UnidentifiedImageError:
            raise ValueError(f"{path}: no image, or a damaged one") from None
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path}: too large an image: {' '.join(str(error).split())}") from None
        except MemoryError:
            raise ValueError(f"{path}: an image that asks for more memory than there is") from None
        except _RefusedError as error:
            raise ValueError(f"{path}: {error}") from None
        except Exception as error:  # Pillow's and its plugins' are of any kind
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path}: cannot be read as an image ({reason.replace(repr(path), 'it')})") from error


class _RefusedError(Exception):
    """Our own words, unlike what Pillow raises."""


@functools.cache
def _formats():
    """Names of the formats that Pillow reads without another program."""
    Image.preinit()  # the usual ones are tried first
    Image.init()
    return tuple(name for name in Image.ID if name not in RUN_PROGRAMS)


def _refuse_unknown_range(image):
    sixteen = image.format in SIXTEEN_BITS and image.mode == "I"
    if image.mode in UNKNOWN_RANGE and not sixteen:
        raise _RefusedError(
            f"its pixels are {'floats' if image.mode.startswith('F') else '32-bit integers'} of unknown range "
            f"(mode {image.mode}): save it with 8 or 16 bits"
        )


def _pixels(image, file):
    """(H, W, 3) uint8 RGB."""
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        file.seek(0)
        data = np.frombuffer(file.read(), np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)  # Pillow's, in half the time
        if pixels is not None:  # else the file is truncated: Pillow says so
            return _upright(pixels, image)
    _refuse_unknown_range(image)
    image.load()
    width, height = image.size
    pixels, rows = np.empty((height, width, 3), np.uint8), max(1, STRIP // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = _rgb(image.crop((0, top, width, bottom)) if rows < height else image)
    return _upright(pixels, image)


def _rgb(image):
    """Pixels of a Pillow image that broadcast to (H, W, 3), 8 bits."""
    if image.mode.startswith("I"):  # 16 bits: Pillow's conversion would clip all above 255, not scale
        return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)[..., None]
    return np.asarray(image.convert("RGB"))


def _upright(pixels, image):
    """Pixels turned as the EXIF orientation of their image says."""
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    if orientation not in TURNS:
        return pixels
    swapped, down, right = TURNS[orientation]
    return np.ascontiguousarray((pixels.swapaxes(0, 1) if swapped else pixels)[::down, ::right])


def list_images(folder, key="DATASETS.TRAIN"):
    """All image files below a folder, in sorted order; the log says what is left out, and why.

    Links are followed. Left out are hidden files and folders (``.ipynb_checkpoints``, ``._photo.jpg``), those of
    archives and systems (``__MACOSX``), files without one of ``EXTENSIONS``, pipes and devices, and links that lead to
    nothing or to a folder that is listed already.

    Args:
        folder: path of an image folder, with or without sub-folders (of classes, say: they are ignored).
        key: what to set to another folder, for the message.

    Returns:
        list[str]: paths.

    Raises:
        FileNotFoundError: if the folder is missing or holds no images.
    """
    folder = str(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder of images; set {key}")
    images, left_out, seen = [], {}, set()

    def leave_out(why, path):
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


def names_digest(paths, folder):
    """SHA-256, in hexadecimal, of the names of images below a folder, which may have moved, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.removeprefix(str(folder)).lstrip(os.sep)}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def list_classes(folder):
    """Names of the sub-folders, one for each class, sorted; without hidden ones, which the log names."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if hidden := [name for name in names if is_hidden(name)]:
        logger.info(f"{folder}: no classes, but hidden or of the system: {', '.join(hidden)}")
    return [name for name in names if not is_hidden(name)]


def is_hidden(name):
    """Whether a file or folder of this name is none of the user's images."""
    return name.startswith(".") or name in SYSTEM

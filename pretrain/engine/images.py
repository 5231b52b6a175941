"""The one reader of image files, and the one list of those in a folder: what is learned is what is detected on."""

import hashlib
import logging
import os
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Palette images with transparency, doubtful EXIF data and the like are still readable
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

logger = logging.getLogger(__name__)
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SYSTEM = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # what archives, servers and systems put beside images
UNREADABLE = (OSError, ValueError)  # what read_image and image_info raise
EXIF_ORIENTATION = 0x0112  # tag; 1 is upright, 5 to 8 swap width and height
UNKNOWN_RANGE = ("I", "F", "I;32", "F;32")  # modes whose pixels have no largest value


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
        path: of a file in any format that Pillow reads.

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
        width, height = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
        return ImageInfo(width, height, orientation, image.mode)

    return _with_image(path, look)


def _with_image(path, function):
    """``function(Pillow image, its open file)``; whatever a damaged file makes Pillow raise is a ValueError."""
    with open(path, "rb") as file:
        try:
            with Image.open(file) as image:
                return function(image, file)
        except UnidentifiedImageError:
            raise ValueError(f"{path}: no image, or a damaged one") from None
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path}: too large an image: {' '.join(str(error).split())}") from None
        except MemoryError:
            raise ValueError(f"{path}: an image that asks for more memory than there is") from None
        except _UnknownRangeError as error:
            raise ValueError(f"{path}: {error}") from None
        except Exception as error:  # Pillow's and its plugins' are of any kind
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path}: cannot be read as an image ({reason.replace(repr(path), 'it')})") from error


class _UnknownRangeError(Exception):
    pass


def _refuse_unknown_range(image):
    sixteen = image.format == "PNG" and image.mode == "I"  # as older versions of Pillow call it
    if image.mode in UNKNOWN_RANGE and not sixteen:
        raise _UnknownRangeError(
            f"its pixels are {'floats' if image.mode.startswith('F') else '32-bit integers'} of unknown range "
            f"(mode {image.mode}): save it with 8 or 16 bits"
        )


def _pixels(image, file):
    """(H, W, 3) uint8 RGB."""
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        file.seek(0)
        data = np.frombuffer(file.read(), np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)  # Pillow's, in half the time
        if pixels is not None:  # else the file is truncated: Pillow says so
            return _upright(pixels, image)
    _refuse_unknown_range(image)
    if image.mode.startswith("I"):  # 16 bits: Pillow's conversion would clip all above 255, not scale
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return _upright(np.repeat(gray[..., None], 3, axis=2), image)
    return _upright(np.array(image.convert("RGB")), image)


def _upright(pixels, image):
    """Pixels turned as the EXIF orientation of their image says."""
    if image.getexif().get(EXIF_ORIENTATION, 1) not in range(2, 9):
        return pixels
    turned = Image.fromarray(pixels)
    turned.getexif()[EXIF_ORIENTATION] = image.getexif()[EXIF_ORIENTATION]
    return np.array(ImageOps.exif_transpose(turned))


def list_images(folder, key="DATASETS.TRAIN"):
    """All image files below a folder, in sorted order; the log says what is left out, and why.

    Links are followed. Left out are hidden files and folders (``.ipynb_checkpoints``, ``._photo.jpg``), those of
    archives and systems (``__MACOSX``), files without one of ``EXTENSIONS``, and links that lead to nothing or to a
    folder that is listed already.

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
            elif not os.path.exists(path):
                leave_out("links to nothing", path)
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

"""The one reader of image files: pretraining, readouts and detection get the same pixels."""

import functools
import os
import stat
import warnings
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from . import StrPath

# Palette images with transparency, doubtful EXIF data and the like are still readable
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

T = TypeVar("T")
UNREADABLE = (OSError, ValueError)  # what read_image and image_info raise
EXIF_ORIENTATION = 0x0112  # tag; 1 is upright, 5 to 8 swap width and height
# Orientation -> whether to swap the axes first, then the steps along rows and columns
TURNS = {
    2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1), 5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1),
    8: (True, -1, 1),
}  # fmt: skip
UNKNOWN_RANGE = ("I", "F", "I;32", "F;32")  # modes whose pixels have no largest value
SIXTEEN_BITS = ("PNG", "PPM")  # formats whose 16 bits are mode "I", in some versions of Pillow at least
RUN_PROGRAMS = ("EPS",)  # formats that Pillow passes to another program: Ghostscript executes the file
STRIP = 2**24  # pixels converted at a time: a large image takes about twice its own memory


class ImageInfo(NamedTuple):
    """What the header of an image file says.

    Attributes:
        width: pixels of the upright image.
        height: pixels of the upright image.
        orientation: of EXIF; 1 is upright.
        mode: Pillow's, such as "RGB".
    """

    width: int
    height: int
    orientation: int
    mode: str


def read_image(path: StrPath) -> np.ndarray:
    """Decode an image, upright.

    The EXIF orientation is applied, as in Detectron2; gray values become three equal channels; 16 bits are scaled to 8
    (their upper byte); transparency is dropped; the first of several pictures in a file is read.

    Args:
        path: a file in any format that Pillow reads without another program.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        ValueError: if it is no image, damaged, truncated, above Pillow's limit of pixels, or has pixels of unknown
            range (32-bit integers and floats); one line that begins with the path.
    """
    return _with_image(path, _pixels)


def image_info(path: StrPath) -> ImageInfo:
    """Size, orientation and mode of the image that :func:`read_image` would return, from the header alone.

    Raises:
        OSError: as :func:`read_image`.
        ValueError: as :func:`read_image`, for faults that the header shows.
    """

    def look(image: Image.Image, _: BinaryIO) -> ImageInfo:
        _refuse_unknown_range(image)
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        turned = image.format != "TIFF" and TURNS.get(orientation, (False,))[0]  # Pillow turns TIFF by itself
        width, height = image.size[::-1] if turned else image.size
        return ImageInfo(width, height, orientation, image.mode)

    return _with_image(path, look)


def _with_image(path: StrPath, function: Callable[[Image.Image, BinaryIO], T]) -> T:
    """``function(Pillow image, its open file)``; whatever Pillow raises on a damaged file becomes a ValueError."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
        raise ValueError(f"{path}: not a file but a folder, a pipe or a device")
    with open(path, "rb") as file:
        try:
            with Image.open(file, formats=_formats()) as image:
                return function(image, file)
        except UnidentifiedImageError:
            raise ValueError(f"{path}: not an image, or a damaged one") from None
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path}: too large an image: {' '.join(str(error).split())}") from None
        except MemoryError:
            raise ValueError(f"{path}: an image that asks for more memory than there is") from None
        except _RefusedError as error:
            raise ValueError(f"{path}: {error}") from None
        except Exception as error:  # Pillow and its plugins raise errors of any kind
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path}: cannot be read as an image ({reason.replace(repr(path), 'it')})") from error


class _RefusedError(Exception):
    """An error with a message of this module, which Pillow's errors have not."""


@functools.cache
def _formats() -> tuple[str, ...]:
    """Names of the formats that Pillow reads without another program."""
    Image.preinit()  # the usual ones are tried first
    Image.init()
    return tuple(name for name in Image.ID if name not in RUN_PROGRAMS)


def _refuse_unknown_range(image: Image.Image) -> None:
    sixteen = image.format in SIXTEEN_BITS and image.mode == "I"
    if image.mode in UNKNOWN_RANGE and not sixteen:
        raise _RefusedError(
            f"its pixels are {'floats' if image.mode.startswith('F') else '32-bit integers'} of unknown range "
            f"(mode {image.mode}): save it with 8 or 16 bits"
        )


def _pixels(image: Image.Image, file: BinaryIO) -> np.ndarray:
    """The upright pixels, (H, W, 3) uint8 RGB."""
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        file.seek(0)
        data = np.frombuffer(file.read(), np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)  # as Pillow, twice as fast
        if pixels is not None:  # else Pillow reports that the file is truncated
            return _upright(pixels, image)
    _refuse_unknown_range(image)
    image.load()
    width, height = image.size
    pixels, rows = np.empty((height, width, 3), np.uint8), max(1, STRIP // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = _rgb(image.crop((0, top, width, bottom)) if rows < height else image)
    return _upright(pixels, image)


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a Pillow image, uint8, that broadcast to (H, W, 3)."""
    if image.mode.startswith("I"):  # 16 bits: Pillow's conversion clips values above 255 instead of scaling
        return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)[..., None]
    return np.asarray(image.convert("RGB"))


def _upright(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Pixels turned as their image's EXIF orientation says."""
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    if orientation not in TURNS:
        return pixels
    swapped, down, right = TURNS[orientation]
    return np.ascontiguousarray((pixels.swapaxes(0, 1) if swapped else pixels)[::down, ::right])

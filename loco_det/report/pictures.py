"""Pictures inside a page: curves, figures that runs have drawn, detections, as large as the page's size allows."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from pretrain.files.images import UNREADABLE, read_image

from ..runs.folder import Run

PICTURES = 24  # of detections and views on a page; each run gets the same share, and one at least
PICTURE_BYTES = 3_000_000  # of all pictures on a page, as base64; curves and text come on top
GAP = 8  # white pixels between the halves of a comparison, the ground truth and the prediction
PICTURE_WIDTHS = (1600, 1100, 700, 450)  # pixels; the first with which the pictures stay within PICTURE_BYTES


@dataclass(frozen=True)
class Picture:
    """A picture and what is said of it.

    Attributes:
        uri: the picture itself, as a data URI.
        alt: what it shows, for those who do not see it.
        caption: below it; "": none.
    """

    uri: Markup
    alt: str
    caption: str = ""


def picture(data: bytes, alt: str, caption: str = "", mime: str = "png") -> Picture:
    """The picture of a file's bytes."""
    return Picture(Markup(f"data:image/{mime};base64,{base64.b64encode(data).decode()}"), alt, caption)


def few_colours(path: Path) -> bytes | None:
    """A figure such as analysis.png in few colours, which is a third of its size; None if there is none."""
    try:
        image = Image.fromarray(read_image(path))
    except UNREADABLE:
        return None
    buffer = io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def embedded(runs: Sequence[Run]) -> dict[Path, tuple[bytes, str]]:
    """Path -> (bytes, mime) of the runs' pictures; those that are unreadable or too many are absent."""
    paths = [path for run in runs for path in run.pictures[: max(1, PICTURES // len(runs))]]
    for width in PICTURE_WIDTHS:
        found, total = {}, 0
        for path in paths:
            try:
                data = _compress(path, width)
            except UNREADABLE:  # a truncated or foreign file: the page does without
                continue
            total += len(data[0]) * 4 // 3
            if total > PICTURE_BYTES:
                break
            found[path] = data
        else:
            break
    return found


def halves(path: Path) -> tuple[Image.Image, Image.Image] | None:
    """Ground truth and prediction of a picture by :func:`loco_det.report.visualize.draw_comparison`.

    Args:
        path: of the picture.

    Returns:
        None if it is unreadable, or has no gap in it.
    """
    try:
        pixels = read_image(path)
    except UNREADABLE:
        return None
    white = np.flatnonzero((pixels == 255).all(axis=(0, 2)))
    runs = np.split(white, np.flatnonzero(np.diff(white) > 1) + 1)
    ends = [int(run[-1]) + 1 for run in runs if len(run) >= GAP and 0 < run[0] and run[-1] + 1 < pixels.shape[1]]
    if not ends:
        return None
    end = min(ends, key=lambda column: abs(2 * column - GAP - pixels.shape[1]))  # a narrow half has a white margin
    return Image.fromarray(pixels[:, : end - GAP]), Image.fromarray(pixels[:, end:])


def as_jpeg(image: Image.Image, width: int) -> bytes:
    """The bytes of a picture, at most ``width`` wide."""
    buffer = io.BytesIO()
    # Full chroma: thin coloured boxes stay sharp
    _narrowed(image, width).save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def _narrowed(image: Image.Image, width: int) -> Image.Image:
    if image.width <= width:
        return image
    size = (width, max(1, round(image.height * width / image.width)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _compress(path: Path, width: int) -> tuple[bytes, str]:
    """(bytes, mime) of a picture at most ``width`` wide: JPEG, or the PNG as it is where that is smaller."""
    image = Image.fromarray(read_image(path))
    data = as_jpeg(image, width)
    if path.stat().st_size < len(data) and image.width <= width:
        return path.read_bytes(), "png"
    return data, "jpeg"

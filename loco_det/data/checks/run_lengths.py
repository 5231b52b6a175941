"""Checks of RLE masks: their size, and whether their runs fill the image."""

import numpy as np
from pycocotools import mask as mask_utils

from .findings import Report
from .objects import Objects, Shapes


def check_run_lengths(report: Report, objects: Objects, shapes: Shapes, i: int) -> None:
    """Check that an RLE mask has the size of its image, and that its runs fill it.

    Args:
        report: gets the findings; its ``has_rle`` is set unless it is a crowd region.
        objects: the annotations.
        shapes: of the same annotations; gets the area and the box, if there is no error.
        i: index of the annotation.
    """
    code = objects.entries[i]["segmentation"]
    if not objects.crowd[i]:
        report.has_rle = True
        report.add("run_length", lambda: objects.where(i))
    width, height = map(int, objects.size[i])
    if code["size"] != [height, width] or {*map(type, code["size"])} != {int}:
        report.add("rle_size", lambda: f"{objects.where(i)}: {str(code['size'])[:60]}, the image {[height, width]}")
        return
    runs = _runs(code["counts"])
    if runs is None or runs.min() < 0 or runs.sum() != height * width:
        report.add("rle_broken", lambda: f"{objects.where(i)}: {_about(runs, height * width)}")
        return
    shapes.area[i] = area = runs[1::2].sum()  # runs of background and object take turns
    if area:
        packed = mask_utils.frPyObjects(code, height, width) if isinstance(code["counts"], list) else code
        x, y, w, h = mask_utils.toBbox(packed)
        shapes.box[i] = x, y, x + w, y + h


def _about(runs, pixels):
    if runs is None:
        return "its counts are neither COCO's text nor a list of whole numbers"
    return f"its counts sum up to {runs.sum()}, the image has {pixels} pixels" if runs.min() >= 0 else "negative counts"


def _runs(counts):
    """The lengths of the runs, (M,) int64, from COCO's text or a list; None if it is neither."""
    if isinstance(counts, list):
        if not counts or {*map(type, counts)} != {int} or not 0 <= max(counts) - min(counts) < 2**40:
            return None
        return np.array(counts)
    if not isinstance(counts, str) or not counts.isascii():
        return None
    # As pycocotools' rleFrString: a number is a group of characters with 5 bits each, and a sixth bit that says whether
    # another one follows. The highest bit of the last one is the sign. From the fourth number on, a number is the
    # difference to the one two places before it.
    bits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(bits & 32 == 0)
    if not len(last) or last[-1] != len(bits) - 1 or bits.min() < 0 or bits.max() > 63:
        return None
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 8:
        return None
    place = np.arange(len(bits)) - np.repeat(first, length)
    runs = np.add.reduceat((bits & 31) << (5 * place), first)
    runs -= np.where(bits[last] & 16, np.int64(1) << (5 * length), 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs

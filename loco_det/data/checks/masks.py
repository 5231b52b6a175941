"""Checks of segmentations: polygons, all coordinates of a chunk of annotations at once, and run-length codes."""

from array import array
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_utils

from .boxes import FAR, TOLERANCE

CHUNK = 50_000  # annotations whose coordinates are in memory as arrays at once


@dataclass
class Shapes:
    """What N masks cover; NaN where that cannot be told.

    Attributes:
        area: (N,) square pixels; polygons of one object do not overlap, as a rule.
        box: (N, 4) left, top, right and bottom edge in pixels.
    """

    area: np.ndarray
    box: np.ndarray

    @classmethod
    def unknown(cls, count):
        return cls(np.full(count, np.nan), np.full((count, 4), np.nan))


def check_masks(report, objects):
    """Check all segmentations.

    Args:
        report: gets the findings; its ``has_rle`` is set if an object, crowds aside, has a run-length code.
        objects: :class:`loco_det.data.checks.objects.Objects` whose segmentations are lists of lists, run-length
            codes or missing.

    Returns:
        Shapes
    """
    shapes = Shapes.unknown(len(objects))
    for start in range(0, len(objects), CHUNK):
        polygons = _Polygons()
        for i in range(start, min(start + CHUNK, len(objects))):
            mask = objects.entries[i].get("segmentation")
            if not mask:
                report.add("mask_missing", lambda i=i: objects.where(i))
            elif type(mask) is dict:
                _check_code(report, objects, shapes, i)
            elif not polygons.add(i, mask):
                _explain(report, mask, objects.where(i), objects.size[i])
        _check_polygons(report, objects, shapes, polygons)
    return shapes


class _Polygons:
    """Polygons of many annotations, one after another.

    Attributes:
        coordinates: x, y, x, y, ... of all of them.
        points: number of points of each.
        owners: index of each one's annotation, ascending.
        partial: indices of annotations of which other polygons are left out.
    """

    def __init__(self):
        self.coordinates, self.points, self.owners, self.partial = array("d"), [], [], []

    def add(self, i, mask):
        """Add the polygons of an annotation that can be used; whether that was all of them."""
        whole = True
        for polygon in mask:
            count = len(polygon)
            try:
                if count < 6 or count % 2:
                    raise TypeError
                self.coordinates.fromlist(polygon)  # all or none of them
            except (TypeError, OverflowError):
                whole = False
            else:
                self.points.append(count // 2)
                self.owners.append(i)
        if not whole:
            self.partial.append(i)
        return whole


def _check_polygons(report, objects, shapes, polygons):
    """Compute areas and boxes of the annotations; report coordinates that cannot be right."""
    if not polygons.owners:
        return
    points = np.frombuffer(polygons.coordinates).reshape(-1, 2)
    counts, owners = np.array(polygons.points), np.array(polygons.owners)
    starts = np.cumsum(counts) - counts
    following = np.arange(1, len(points) + 1)
    following[starts + counts - 1] = starts
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))  # the first polygon of each annotation
    which, at = owners[firsts], starts[firsts]
    with np.errstate(invalid="ignore", over="ignore"):
        local = points - np.repeat(points[starts], counts, 0)  # far from the origin products lose their digits
        crossed = local[:, 0] * local[following, 1] - local[following, 0] * local[:, 1]
        area = np.add.reduceat(np.abs(np.add.reduceat(crossed, starts)) / 2, firsts)
        low, high = np.minimum.reduceat(points, at), np.maximum.reduceat(points, at)  # NaN where there is one
        reach = np.maximum(-low, high - objects.size[which]).max(1)
    finite = np.isfinite(low).all(1) & np.isfinite(high).all(1)
    far = finite & (reach > FAR * objects.size[which].max(1))
    report.add_each("polygon_not_finite", which[~finite], objects.where)
    report.add_each("coordinates_far", which[far], lambda i: f"{objects.where(i)}: its polygons")
    report.add_each("polygon_cut", which[finite & ~far & (reach > TOLERANCE)], objects.where)
    known = finite & ~np.isin(which, polygons.partial)
    shapes.area[which[known]] = area[known]
    shapes.box[which[known]] = np.hstack([low, high])[known]


def _explain(report, polygons, where, size):
    """Report what is wrong with the polygons of an annotation, of which some cannot be used."""
    lengths = list(map(len, polygons))
    if any(type(value) is list for polygon in polygons for value in polygon) or _are_points(polygons):
        report.add("polygon_nested", f"{where}: {str(polygons)[:60]}")
        return
    for polygon in polygons:
        usable = len(polygon) >= 6 and len(polygon) % 2 == 0
        numbers = [value for value in polygon if isinstance(value, int | float)]
        strange = [value for value in polygon if not isinstance(value, int | float)]
        if strange:
            report.add("wrong_type", f"{where}: coordinate {strange[0]!r:.60} of a polygon must be a number")
        elif not usable:
            report.add("polygon_odd" if len(polygon) > 6 else "polygon_short", f"{where}: {len(polygon)} coordinates")
        _explain_values(report, numbers, where, size, usable)
    if lengths[0] < 6:
        report.add("mask_stops_evaluation", f"{where}: {lengths[0]} coordinates")
    if not any(n >= 6 and n % 2 == 0 for n in lengths):
        report.add("mask_dropped", where)


def _explain_values(report, polygon, where, size, usable):
    """Coordinates of one polygon; of usable ones only those that are too large for a float, as the others are among
    :class:`_Polygons`. pycocotools draws the unusable ones, too."""
    try:
        values = np.array(array("d", polygon))
    except OverflowError:
        report.add("coordinates_far", f"{where}: its polygons")
        return
    if usable or not len(values):
        return
    if not np.isfinite(values).all():
        report.add("polygon_not_finite", where)
    elif max(-values.min(), values.max() - size.max()) > FAR * size.max():
        report.add("coordinates_far", f"{where}: its polygons")


def _are_points(polygons):
    """Whether what should be polygons is the points [x, y] of one."""
    return len(polygons) > 2 and all(len(p) == 2 and {*map(type, p)} <= {int, float} for p in polygons)


def _check_code(report, objects, shapes, i):
    """A run-length code: its size is that of the image, and its runs fill it."""
    code, crowd = objects.entries[i]["segmentation"], objects.crowd[i]
    report.has_rle |= not crowd
    if not crowd:
        report.add("run_length", lambda: objects.where(i))
    width, height = map(int, objects.size[i])
    if code["size"] != [height, width] or {*map(type, code["size"])} != {int}:
        report.add("rle_size", lambda: f"{objects.where(i)}: {str(code['size'])[:60]}, the image {[height, width]}")
        return
    runs = _runs(code["counts"])
    if runs is None or runs.min() < 0 or runs.sum() != height * width:
        report.add("rle_broken", lambda: f"{objects.where(i)}: {_about(runs, height * width)}")
        return
    shapes.area[i] = area = runs[1::2].sum()
    if area:
        packed = mask_utils.frPyObjects(code, height, width) if isinstance(code["counts"], list) else code
        x, y, w, h = mask_utils.toBbox(packed)
        shapes.box[i] = x, y, x + w, y + h


def _about(runs, pixels):
    if runs is None:
        return "its counts are neither COCO's text nor a list of whole numbers"
    return f"its counts sum up to {runs.sum()}, the image has {pixels} pixels" if runs.min() >= 0 else "negative counts"


def _runs(counts):
    """Lengths of the runs, (M,) int64, of COCO's text or a list; None if it is neither."""
    if isinstance(counts, list):
        if not counts or {*map(type, counts)} != {int} or not 0 <= max(counts) - min(counts) < 2**40:
            return None
        return np.array(counts)
    if not isinstance(counts, str) or not counts.isascii():
        return None
    # pycocotools' rleFrString: groups of characters with 5 bits each, the sixth says that more follow; the last
    # group's highest bit is the sign; from the fourth number on they are differences to the number before the last
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

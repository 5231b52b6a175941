"""Checks of segmentations: polygons, the coordinates of many annotations at once; run_lengths.py has the RLE masks."""

from array import array
from collections.abc import Sequence
from functools import partial

import numpy as np

from .boxes import FAR, TOLERANCE
from .findings import Report
from .objects import Objects, Shapes
from .run_lengths import check_run_lengths

CHUNK = 50_000  # annotations whose coordinates are in memory at once


def check_masks(report: Report, objects: Objects) -> Shapes:
    """Check all segmentations.

    Args:
        report: gets the findings; its ``has_rle`` is set if an object other than a crowd region has an RLE mask.
        objects: their segmentations are lists of lists, RLE or missing.

    Returns:
        What the masks cover, for those without errors.
    """
    shapes = Shapes.unknown(len(objects))
    for start in range(0, len(objects), CHUNK):
        polygons = _Polygons()
        for i in range(start, min(start + CHUNK, len(objects))):
            mask = objects.entries[i].get("segmentation")
            if not mask:
                report.add("mask_missing", partial(objects.where, i))
            elif type(mask) is dict:
                check_run_lengths(report, objects, shapes, i)
            elif not polygons.add(i, mask):
                _explain(report, mask, objects.where(i), objects.size[i])
        _check_polygons(report, objects, shapes, polygons)
    return shapes


class _Polygons:
    """Polygons of many annotations, one after another.

    Attributes:
        coordinates: x, y, x, y, ... of all polygons.
        points: number of points of each polygon.
        owners: index of each polygon's annotation, ascending.
        partial: indices of annotations of which some polygons were left out.
    """

    def __init__(self) -> None:
        self.coordinates = array("d")
        self.points: list[int] = []
        self.owners: list[int] = []
        self.partial: list[int] = []

    def add(self, i: int, mask: Sequence[list[float]]) -> bool:
        """Add the usable polygons of annotation ``i``; returns whether all of them are usable."""
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
    """Compute the areas and boxes of the annotations; report impossible coordinates."""
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
        local = points - np.repeat(points[starts], counts, 0)  # products of large coordinates lose digits
        crossed = local[:, 0] * local[following, 1] - local[following, 0] * local[:, 1]
        area = np.add.reduceat(np.abs(np.add.reduceat(crossed, starts)) / 2, firsts)
        low, high = np.minimum.reduceat(points, at), np.maximum.reduceat(points, at)  # NaN if any is NaN
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
    """Report what is wrong with the polygons of an annotation, some of which are not usable."""
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
    """Report impossible coordinates of one polygon: pycocotools draws unusable polygons too. :func:`_check_polygons`
    checks those of usable ones, except numbers that are too large for a float."""
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
    """Whether the list has the points [x, y] of a single polygon instead of polygons."""
    return len(polygons) > 2 and all(len(p) == 2 and {*map(type, p)} <= {int, float} for p in polygons)

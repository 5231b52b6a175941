"""Checks of boxes and areas: by themselves, against the image, and against the masks."""

import numpy as np

from .findings import MEDIUM, SMALL, Report
from .objects import Objects, Shapes

TOLERANCE = 1.0  # pixels by which boxes and polygons may reach out of the image: COCO's own do, by rounding
FAR = 1.0  # coordinates farther out of the image than this times its longer side are errors
SLACK = 2.0, 0.05  # pixels, and share of the longer side, by which a box and its mask may differ on each side
AREA_FACTOR = 5  # by which an area may differ from its mask's: less for overlapping polygons or the box's area
THIN = 50  # how many times larger than the object's area a box may be, if there is no mask


def check_boxes(report: Report, objects: Objects, shapes: Shapes) -> np.ndarray:
    """Check all boxes: by themselves, against the image and against the masks.

    Args:
        report: gets the findings.
        objects: N annotations.
        shapes: what their masks cover.

    Returns:
        (N,) bool: boxes in pixels that overlap the image.
    """
    x, y, w, h = objects.box.T
    width, height = objects.size.T
    finite = np.isfinite(objects.box).all(1)
    negative, flat = finite & ((w < 0) | (h < 0)), finite & (w >= 0) & (h >= 0) & ((w == 0) | (h == 0))
    solid = finite & ~negative & ~flat
    outside = solid & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
    with np.errstate(invalid="ignore"):
        reach = np.where(solid, np.max([-x, -y, x + w - width, y + h - height], 0), 0)
    far = reach > FAR * objects.size.max(1)
    cut = reach > TOLERANCE
    corners, normalized = _as_corners(objects, shapes, solid, cut), _normalized(objects, solid)
    sane = solid & ~corners & ~normalized
    found = {
        "box_not_finite": ~finite,
        "box_negative": negative,
        "box_flat": flat,
        "box_corners": corners,
        "box_normalized": normalized,
        "coordinates_far": far & sane,
        "box_outside": outside & sane & ~far,
        "box_cut": cut & sane & ~far & ~outside,
    }
    for kind, which in found.items():
        report.add_each(kind, np.flatnonzero(which), objects.where_box)
    sane &= ~far & ~outside
    _check_fit(report, objects, shapes, sane)
    return sane


def _as_corners(objects, shapes, solid, cut):
    """(N,) bool: boxes that seem to be [x0, y0, x1, y1] instead of [x, y, width, height].

    With a mask: the box fits it only as corners. Without: nearly all boxes of the file are possible as corners, and
    most of them reach out of the image as they are.
    """
    x, y, w, h = objects.box.T
    as_given, as_corners = np.stack([x, y, x + w, y + h], 1), objects.box
    with np.errstate(invalid="ignore"):
        sensible = solid & (w > x) & (h > y) & (as_corners[:, 2:] <= objects.size + TOLERANCE).all(1)
        found = sensible & ~_close(as_given, shapes.box) & _close(as_corners, shapes.box)
    unknown = solid & np.isnan(shapes.box).any(1)
    count = unknown.sum()
    if count and (sensible & unknown).sum() >= 0.95 * count and (cut & unknown).sum() > count / 2:
        found |= sensible & unknown
    return found


def _normalized(objects, solid):
    """(N,) bool: boxes inside the image's first pixel, if most boxes are."""
    x, y, w, h = objects.box.T
    with np.errstate(invalid="ignore"):
        unit = solid & (np.max([-x, -y, x + w - 1, y + h - 1], 0) < 1e-3) & (objects.size.min(1) > 1)
    return unit if unit.sum() > solid.sum() / 2 else np.zeros_like(unit)


def _close(boxes, masks):
    """(N,) bool: whether (N, 4) edges of boxes are close to those of masks; False where these are NaN."""
    pixels, share = SLACK
    slack = np.maximum(pixels, share * (masks[:, 2:] - masks[:, :2]).max(1, keepdims=True))
    return (np.abs(boxes - masks) <= slack).all(1)


def _check_fit(report, objects, shapes, sane):
    """Compare boxes with masks, both clipped to the image: the box may be of the whole object, the mask of its visible
    part."""
    x, y, w, h = objects.box.T
    limits = np.tile(objects.size, 2)
    boxes, masks = (np.clip(edges, 0, limits) for edges in (np.stack([x, y, x + w, y + h], 1), shapes.box))
    judged = sane & ~np.isnan(masks).any(1) & ~objects.crowd
    with np.errstate(invalid="ignore", divide="ignore"):
        both = np.clip(np.minimum(boxes, masks)[:, 2:] - np.maximum(boxes, masks)[:, :2], 0, None).prod(1)
        either = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (masks[:, 2:] - masks[:, :2]).prod(1) - both
        other = judged & (both < 0.5 * either) & ~_close(boxes, masks)
    kind = "boxes_of_others" if other.sum() > judged.sum() / 2 else "box_of_other"
    report.add_each(kind, np.flatnonzero(other), lambda i: f"{objects.where_box(i)}, its mask {_box(shapes.box[i])}")


def _box(edges):
    """Edges as [x, y, width, height]."""
    x0, y0, x1, y1 = edges
    return [round(float(value), 1) for value in (x0, y0, x1 - x0, y1 - y0)]


def check_areas(report: Report, objects: Objects, shapes: Shapes, sane: np.ndarray) -> None:
    """Check the areas, by which COCO's evaluation splits objects into small, medium and large, except of crowd regions.

    Args:
        report, objects, shapes: as in :func:`check_boxes`.
        sane: (N,) bool, what that returned.
    """
    area, known = objects.area, ~np.isnan(shapes.area)
    with np.errstate(invalid="ignore", over="ignore"):
        box = np.where(sane, np.clip(objects.box[:, 2:], 0, objects.size).prod(1), np.nan)
        wanted = np.where(known, shapes.area, box)
        low, high = np.where(known, wanted / AREA_FACTOR, wanted / THIN), wanted * AREA_FACTOR
        limits = (SMALL, MEDIUM)
        moved = ((area < low) | (area > high)) & (np.digitize(area, limits) != np.digitize(wanted, limits))
        impossible = ~np.isfinite(area) | (area < 0) | (area > (objects.size + 2 * TOLERANCE).prod(1))
        # A few pixels are rounding, and drawing a polygon on pixels changes less than a fifth
        off = known & ~(np.abs(area - shapes.area) <= np.maximum(0.2 * shapes.area, 20))
    wrong = (impossible | moved) & ~objects.crowd

    def describe(i):
        value, what = objects.entries[i]["area"], "mask" if known[i] else "box"
        pixels = "" if np.isnan(wanted[i]) else f", its {what} has {wanted[i]:g} pixels"
        return f"{objects.where(i)}: area {value:g}{pixels}"

    report.add_each("area_wrong", np.flatnonzero(wrong), describe)
    report.add_each("area", np.flatnonzero(off & ~wrong), describe)

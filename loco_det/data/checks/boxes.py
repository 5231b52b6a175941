"""Checks of boxes and areas: by themselves, against the image, and against the masks."""

import numpy as np

from .findings import MEDIUM, SMALL

TOLERANCE = 1.0  # pixels that boxes and polygons may reach out of the image: rounding, which COCO's own have
FAR = 1.0  # times the image's longer side that no object's coordinates are out of it
SLACK = 2.0, 0.05  # pixels, and share of the longer side, by which a box and its mask may differ on each side
AREA_FACTOR = 5  # by which an area may be off its mask's; polygons that overlap, or the box's area, stay within
THIN = 50  # times its mask that a box may be, where there is no mask to tell


def check_boxes(report, objects, shapes):
    """Check all boxes.

    Args:
        report: gets the findings.
        objects: :class:`loco_det.data.checks.objects.Objects`.
        shapes: :class:`loco_det.data.checks.masks.Shapes` of the same annotations.

    Returns:
        ndarray: (N,) bool, boxes that are in the image and in its pixels.
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
    corners, normalized = _corners(objects, shapes, solid, cut), _normalized(objects, solid)
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


def _corners(objects, shapes, solid, cut):
    """(N,) bool: boxes that seem to be left, top, right and bottom edges.

    One fits its own mask only so; without masks, all boxes of the file have to make sense so, and most of them not as
    they are.
    """
    x, y, w, h = objects.box.T
    as_given, as_corners = np.stack([x, y, x + w, y + h], 1), objects.box
    with np.errstate(invalid="ignore"):
        sensible = solid & (w > x) & (h > y) & (as_corners[:, 2:] <= objects.size + TOLERANCE).all(1)
        found = sensible & ~_fits(as_given, shapes.box) & _fits(as_corners, shapes.box)
    unknown = solid & np.isnan(shapes.box).any(1)
    count = unknown.sum()
    if count and (sensible & unknown).sum() >= 0.95 * count and (cut & unknown).sum() > count / 2:
        found |= sensible & unknown
    return found


def _normalized(objects, solid):
    """(N,) bool: boxes in a single pixel at the image's corner, if they are most of all boxes."""
    x, y, w, h = objects.box.T
    with np.errstate(invalid="ignore"):
        unit = solid & (np.max([-x, -y, x + w - 1, y + h - 1], 0) < 1e-3) & (objects.size.min(1) > 1)
    return unit if unit.sum() > solid.sum() / 2 else np.zeros_like(unit)


def _fits(boxes, masks):
    """(N,) bool: whether (N, 4) edges are about those of the masks; False where these are NaN."""
    pixels, share = SLACK
    slack = np.maximum(pixels, share * (masks[:, 2:] - masks[:, :2]).max(1, keepdims=True))
    return (np.abs(boxes - masks) <= slack).all(1)


def _check_fit(report, objects, shapes, sane):
    """Boxes against the masks, both cut at the image; a box may be that of the whole object of which little is seen."""
    x, y, w, h = objects.box.T
    limits = np.tile(objects.size, 2)
    boxes, masks = (np.clip(edges, 0, limits) for edges in (np.stack([x, y, x + w, y + h], 1), shapes.box))
    judged = sane & ~np.isnan(masks).any(1) & ~objects.crowd
    with np.errstate(invalid="ignore", divide="ignore"):
        both = np.clip(np.minimum(boxes, masks)[:, 2:] - np.maximum(boxes, masks)[:, :2], 0, None).prod(1)
        either = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (masks[:, 2:] - masks[:, :2]).prod(1) - both
        other = judged & (both < 0.5 * either) & ~_fits(boxes, masks)
    kind = "boxes_of_others" if other.sum() > judged.sum() / 2 else "box_of_other"
    report.add_each(kind, np.flatnonzero(other), lambda i: f"{objects.where_box(i)}, its mask {_box(shapes.box[i])}")


def _box(edges):
    x0, y0, x1, y1 = edges
    return [round(float(value), 1) for value in (x0, y0, x1 - x0, y1 - y0)]


def check_areas(report, objects, shapes, sane):
    """Check the areas, which decide on small, medium and large in COCO's evaluation, of all but crowd regions.

    Args:
        report, objects, shapes: as in :func:`check_boxes`.
        sane: what that returned.
    """
    area, known = objects.area, ~np.isnan(shapes.area)
    with np.errstate(invalid="ignore", over="ignore"):
        box = np.where(sane, np.clip(objects.box[:, 2:], 0, objects.size).prod(1), np.nan)
        wanted = np.where(known, shapes.area, box)
        low, high = np.where(known, wanted / AREA_FACTOR, wanted / THIN), wanted * AREA_FACTOR
        limits = (SMALL, MEDIUM)
        moved = ((area < low) | (area > high)) & (np.digitize(area, limits) != np.digitize(wanted, limits))
        impossible = ~np.isfinite(area) | (area < 0) | (area > (objects.size + 2 * TOLERANCE).prod(1))
        # the odd pixel is rounding; a fifth is more than drawing a polygon on pixels changes
        off = known & ~(np.abs(area - shapes.area) <= np.maximum(0.2 * shapes.area, 20))
    wrong = (impossible | moved) & ~objects.crowd

    def describe(i):
        value, what = objects.entries[i]["area"], "mask" if known[i] else "box"
        pixels = "" if np.isnan(wanted[i]) else f", its {what} has {wanted[i]:g} pixels"
        return f"{objects.where(i)}: area {value:g}{pixels}"

    report.add_each("area_wrong", np.flatnonzero(wrong), describe)
    report.add_each("area", np.flatnonzero(off & ~wrong), describe)

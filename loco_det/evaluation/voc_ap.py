"""Pascal VOC's average precision, as Detectron2 computes it, on arrays instead of text files.

Detectron2's ``voc_eval`` goes through the detections of a class one by one, for each class and each IoU, and parses
what it has written into files of text. Here the overlaps are computed once for all IoUs, of all detections together;
the figures are the same to the bit (tests/loco_det/evaluation/test_voc.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Boxes:
    """Boxes of one class on all images; corners are the first and the last pixel, which both belong to the box.

    Attributes:
        image: (N,) int, index of the image of each box.
        corners: (N, 4) float64, xmin, ymin, xmax, ymax.
    """

    image: np.ndarray
    corners: np.ndarray


def average_precisions(
    truth: Boxes,
    difficult: np.ndarray,
    found: Boxes,
    scores: np.ndarray,
    ious: Sequence[float],
    eleven_points: bool,
) -> np.ndarray:
    """AP of one class at each IoU.

    A detection, the highest score first, is matched with the object that it overlaps most. It is a hit if the IoU is
    above the limit and the object is not taken yet, and does not count if the object is difficult.

    Args:
        truth: N objects.
        difficult: (N,) bool.
        found: M detections.
        scores: (M,) float64.
        ious: limits.
        eleven_points: VOC2007's metric, the mean of the precisions at 11 recalls; else the area under the curve.

    Returns:
        (len(ious),) float64 in [0, 1]; NaN if no object counts.
    """
    count = int((~difficult).sum())
    if not count:
        return np.full(len(ious), np.nan)
    order = np.argsort(-scores)  # as Detectron2, ties included
    best, owner = _best_overlaps(truth, Boxes(found.image[order], found.corners[order]))
    curve = eleven_point_ap if eleven_points else area_ap
    result = []
    for iou in ious:
        with np.errstate(invalid="ignore"):
            matched = np.flatnonzero(best > iou)  # NaN, of boxes without area, is none
        counted = matched[~difficult[owner[matched]]]
        hit, false = np.zeros(len(order)), np.ones(len(order))
        false[matched] = 0
        false[counted] = 1
        first = counted[np.unique(owner[counted], return_index=True)[1]]
        hit[first], false[first] = 1, 0
        hits, misses = np.cumsum(hit), np.cumsum(false)
        precision = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
        result.append(curve(hits / float(count), precision))
    return np.array(result)


def _best_overlaps(truth, found):
    """For each of M detections its highest IoU with an object of its image, (M,), -inf without objects; and the index
    of that object among all, (M,), of several the first."""
    by_image = np.argsort(truth.image, kind="stable")
    images = truth.image[by_image]
    start, end = (np.searchsorted(images, found.image, side) for side in ("left", "right"))
    number = end - start
    best, owner = np.full(len(start), -np.inf), np.full(len(start), -1)
    some = np.flatnonzero(number)
    if not len(some):
        return best, owner
    lengths = number[some]
    begins = np.cumsum(lengths) - lengths
    within = np.arange(lengths.sum()) - np.repeat(begins, lengths)
    objects = by_image[np.repeat(start[some], lengths) + within]  # of each pair of a detection and an object
    overlaps = _overlaps(truth.corners[objects], found.corners[np.repeat(some, lengths)])
    best[some] = np.maximum.reduceat(overlaps, begins)
    tops = np.flatnonzero(overlaps == np.repeat(best[some], lengths))
    which, first = np.unique(np.searchsorted(begins, tops, "right") - 1, return_index=True)
    owner[some[which]] = objects[tops[first]]
    return best, owner


def _overlaps(objects, boxes):
    """IoU of (P, 4) objects and boxes, (P,); both corners count as pixels. The operations are in Detectron2's order."""
    width = np.maximum(np.minimum(objects[:, 2], boxes[:, 2]) - np.maximum(objects[:, 0], boxes[:, 0]) + 1.0, 0.0)
    height = np.maximum(np.minimum(objects[:, 3], boxes[:, 3]) - np.maximum(objects[:, 1], boxes[:, 1]) + 1.0, 0.0)
    both = width * height
    either = (
        (boxes[:, 2] - boxes[:, 0] + 1.0) * (boxes[:, 3] - boxes[:, 1] + 1.0)
        + (objects[:, 2] - objects[:, 0] + 1.0) * (objects[:, 3] - objects[:, 1] + 1.0)
        - both
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / either


def eleven_point_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC2007's AP: the mean, over recalls 0, 0.1, ..., 1, of the highest precision at that recall or above.

    Args:
        recall: (M,), ascending.
        precision: (M,).
    """
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    ap = 0.0
    for index in np.searchsorted(recall, np.arange(0.0, 1.1, 0.1)):
        ap = ap + highest[index] / 11.0
    return float(ap)


def area_ap(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC's AP since 2010: the area under the curve, whose precision is made to fall.

    Args:
        recall: (M,), ascending.
        precision: (M,).
    """
    recall = np.concatenate(([0.0], recall, [1.0]))
    falling = np.maximum.accumulate(np.concatenate(([0.0], precision, [0.0]))[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * falling[steps + 1]))

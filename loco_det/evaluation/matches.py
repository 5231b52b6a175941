"""Which detections count as right at each IoU, of every image: all that COCO's AP is computed from."""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.coco_files import without_collector
from .analysis import coco_detections
from .coco import prepare, unsupported

MOST = 100  # detections of a class in an image that count, those with the highest scores
LARGEST = 1e10  # pixels: the area that "all" ends at
IOUS = 10  # 0.5 to 0.95


@dataclass(frozen=True)
class Objects:
    """The ground truth.

    Attributes:
        images, classes: id -> index, ids ascending.
        counts: (K, I) numbers of objects of each class in each image, without those that are ignored.
    """

    images: dict[int, int]
    classes: dict[int, int]
    counts: np.ndarray


@dataclass(frozen=True)
class Matches:
    """The detections of one class, by falling score; equal scores in the order of the images and of the file.

    Attributes:
        images: (D,) index of the image of each.
        hits: for each IoU, places of those that take an object.
        ignored: for each IoU, places of those that are neither right nor wrong.
    """

    images: np.ndarray
    hits: list[np.ndarray]
    ignored: list[np.ndarray]


def count_objects(truth: COCO) -> Objects:
    """Count the objects of a ground truth, as :func:`loco_det.data.coco_files.read_ground_truth` reads it."""
    images, classes = ({key: place for place, key in enumerate(sorted(ids))} for ids in (truth.imgs, truth.cats))
    counts = np.zeros((len(classes), len(images)), dtype=np.int64)
    objects = [a for a in truth.anns.values() if not a.get("iscrowd") and 0 <= a["area"] <= LARGEST]
    np.add.at(counts, _places(objects, classes, images), 1)
    return Objects(images, classes, counts)


@without_collector()
def match(truth: COCO, objects: Objects, detections: list[dict[str, Any]], task: str) -> list[Matches]:
    """Match detections with objects as COCO's evaluation does.

    hotcoco, or where it need not agree pycocotools, matches those that have objects of their class in their image, or
    an area that is ignored. Any other detection is wrong at every IoU.

    Args:
        truth: pycocotools' COCO of the ground truth.
        objects: of it.
        detections: in COCO's results format; not changed.
        task: "bbox" or "segm".

    Returns:
        list of Matches, one for each class.

    Raises:
        ValueError: as :func:`loco_det.evaluation.coco.evaluate`.
    """
    kind, image = _places(detections, objects.classes, objects.images)
    scores = np.array([d["score"] for d in detections], dtype=float)
    order = np.lexsort((-scores, image, kind))  # stable
    order = order[_rank(kind[order], image[order]) < MOST]
    found = [detections[place] for place in order]
    known = np.zeros(objects.counts.shape, dtype=bool)
    known[_places(truth.anns.values(), objects.classes, objects.images)] = True
    odd = [task == "bbox" and not 0 <= d["bbox"][2] * d["bbox"][3] <= LARGEST for d in found]
    asked = np.flatnonzero(known[kind[order], image[order]] | np.array(odd, dtype=bool))
    hit, ignored = np.zeros((2, IOUS, len(found)), dtype=bool)
    for entry in _entries(truth, [found[place] for place in asked], task) if len(asked) else ():
        if entry and entry["dtIds"]:
            places = asked[np.array(entry["dtIds"]) - 1]
            taken, left_out = np.array(entry["dtMatches"]) != 0, np.array(entry["dtIgnore"], dtype=bool)
            hit[:, places], ignored[:, places] = taken & ~left_out, left_out
    by_class = []
    for index in range(len(objects.classes)):
        mine = np.flatnonzero(kind[order] == index)
        mine = mine[np.argsort(-scores[order[mine]], kind="stable")]
        flags = ([np.flatnonzero(row) for row in array[:, mine]] for array in (hit, ignored))
        by_class.append(Matches(image[order[mine]], *flags))
    return by_class


def _places(entries, classes, images):
    """Indices of the classes and of the images of annotations or detections."""
    ids = [(classes[e["category_id"]], images[e["image_id"]]) for e in entries]
    return tuple(np.array(ids, dtype=np.int64).reshape(-1, 2).T)


def _rank(kind, image):
    """The place of each detection among those of its class and image, which stand together."""
    place = np.arange(len(kind))
    begins = np.ones(len(kind), dtype=bool)
    begins[1:] = (np.diff(kind) != 0) | (np.diff(image) != 0)
    return place - np.maximum.accumulate(np.where(begins, place, 0)) if len(kind) else place


def _entries(truth, detections, task):
    """evalImgs of objects of all sizes; the detections have the ids 1, 2, ..."""
    if unsupported(truth, detections, [task]) is None:
        fast = prepare(truth, detections, task)[1]
        fast.params.area_rng, fast.params.area_rng_lbl = fast.params.area_rng[:1], fast.params.area_rng_lbl[:1]
        fast.evaluate()
        return fast.eval_imgs
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, coco_detections(truth, detections, task), task)
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
    return evaluation.evalImgs

"""What a detector gets right and wrong, from files: AP of classes and sizes, precision-recall curves, confusions."""

import contextlib
import copy
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.coco_files import read_ground_truth, without_collector

IOU = 0.5  # boxes of a confusion overlap at least so much
SIZES = ("all", "small", "medium", "large")  # pycocotools' order; limits are 32² and 96² pixels
CURVES = {"0.50": 0, "0.75": 5, "0.50:0.95": slice(None)}  # name -> index among pycocotools' IoU thresholds


def analyze(
    ground_truth: str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    threshold: float = 0.5,
    evaluation: Callable[..., Any] = COCOeval,
    masks: bool = False,
) -> dict[str, Any]:
    """Analyse predictions by pycocotools' own arrays, so that AP here is the AP of the COCO evaluation.

    Args:
        ground_truth: path of a COCO annotation file.
        predictions: path of a file in COCO's results format; with masks, these are analysed too.
        threshold: lowest score of a detection in the confusion matrix.
        evaluation: pycocotools' COCOeval, or a class with its methods and arrays.
        masks: whether the detector predicts masks; read where there are no predictions to tell.

    Returns:
        dict, ready for JSON (percent; None where there are no such objects):
        "classes": names, in the order of the category ids; "images", "objects" (without crowds and what is ignored),
        "detections": numbers;
        "tasks": "bbox" and perhaps "segm" -> "sizes": size -> AP, AR (recall of 100 detections an image, mean over
        IoU); "per_class": class -> "objects", AP, AP50, AP75, APs, APm, APl, AR; "curves": "recall" and, for each of
        ``CURVES``, the precision there, mean over classes (101 points);
        "confusion": as :func:`confusion` returns it.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the ground truth is no COCO file, or predictions are no list in COCO's results format, or of
            images or classes that are not in the ground truth.
    """
    if not os.path.isfile(ground_truth):
        raise FileNotFoundError(f"{ground_truth}: no such file")
    truth = read_ground_truth(ground_truth)
    found = read_detections(predictions, truth, ground_truth)
    classes = [truth.cats[i]["name"] for i in truth.getCatIds()]
    objects = [a for a in truth.anns.values() if not _is_ignored(a)]
    tasks = ["bbox", "segm"] if ("segmentation" in found[0] if found else masks) else ["bbox"]
    return {
        "classes": classes,
        "images": len(truth.imgs),
        "objects": len(objects),
        "detections": len(found),
        "tasks": {task: _task(truth, found, task, classes, evaluation) for task in tasks},
        "confusion": confusion(truth, found, threshold),
    }


@without_collector()
def read_detections(
    predictions: str | os.PathLike[str], truth: COCO, ground_truth: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """The content of a file in COCO's results format.

    Args:
        predictions: its path.
        truth, ground_truth: what it belongs to, and its file, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no list in COCO's results format, or of images or classes that are not in the ground truth.
    """
    if not os.path.isfile(predictions):
        raise FileNotFoundError(f"{predictions}: no such file")
    with open(predictions) as f:
        found = json.load(f)
    fields = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(found, list) or not all(isinstance(d, dict) and fields <= d.keys() for d in found):
        raise ValueError(f"{predictions}: not COCO's results format, a list of {', '.join(sorted(fields))}")
    for field, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
        strange = next((d[field] for d in found if d[field] not in known), None)
        if strange is not None:
            raise ValueError(f"{predictions}: {field} {strange} is not in {ground_truth}: are they of other data?")
    return found


def _task(truth, found, task, classes, evaluation):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluated = evaluation(truth, coco_detections(truth, found, task), task)
        evaluated.evaluate()
        evaluated.accumulate()
    # (IoU, recall point, class, size, maxDets) and (IoU, class, size, maxDets), -1 where there are no objects; with 100
    # detections an image, the last of maxDets
    precision, recall = (np.asarray(evaluated.eval[key])[..., -1] for key in ("precision", "recall"))
    precision, recall = (np.where(array > -1, 100 * array, np.nan) for array in (precision, recall))
    counts = Counter(a["category_id"] for a in truth.anns.values() if not _is_ignored(a))
    per_class, ids = {}, truth.getCatIds()
    for k, name in enumerate(classes):
        aps = {"AP": precision[:, :, k, 0], "AP50": precision[0, :, k, 0], "AP75": precision[5, :, k, 0]}
        aps |= {f"AP{size[0]}": precision[:, :, k, a] for a, size in enumerate(SIZES) if a}
        aps["AR"] = recall[:, k, 0]
        per_class[name] = {"objects": counts[ids[k]], **{key: _mean(value) for key, value in aps.items()}}
    curves = {"recall": [round(float(r), 2) for r in evaluated.params.recThrs]}
    for name, index in CURVES.items():
        at = precision[index, :, :, 0].reshape(-1, *precision.shape[1:3])  # (IoU, recall point, class)
        curves[name] = [_mean(at[:, r]) for r in range(at.shape[1])]
    sizes = {s: {"AP": _mean(precision[:, :, :, a]), "AR": _mean(recall[:, :, a])} for a, s in enumerate(SIZES)}
    return {"sizes": sizes, "per_class": per_class, "curves": curves}


def _is_ignored(annotation):
    """Whether it is a crowd region, or ignored for its area as Pascal VOC's difficult objects (voc.py) are."""
    return bool(annotation.get("iscrowd")) or annotation.get("area", 0) < 0


def coco_detections(truth: COCO, found: list[dict[str, Any]], task: str) -> COCO:
    """Detections in COCO's results format as pycocotools wants them for "bbox" or "segm"; they are not changed."""
    if found:
        # of results with boxes it would take the box's area for that of the mask
        drop = "segmentation" if task == "bbox" else "bbox"
        return truth.loadRes([{k: copy.copy(v) for k, v in d.items() if k != drop} for d in found])
    return no_detections(truth)


def no_detections(truth: COCO) -> COCO:
    """An empty set of detections on the images of ``truth``, both pycocotools' ``COCO``."""
    empty = COCO()
    empty.dataset = {**{key: truth.dataset[key] for key in ("images", "categories")}, "annotations": []}
    empty.createIndex()
    return empty


def _mean(values):
    """Mean of what is no NaN, rounded; None if nothing is left."""
    values = values[~np.isnan(values)]
    return round(float(values.mean()), 3) if values.size else None


def confusion(truth: COCO, found: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Count which class was detected where, by boxes, at IoU 0.5.

    A detection, the highest score first, takes the object of its own class that it overlaps most, as in COCO's
    evaluation, or else a crowd of its class, and does not count then. Only what is left over after that is matched
    across classes. So the diagonal is what COCO's evaluation counts as right at this score.

    Args:
        truth: pycocotools' COCO of the ground truth.
        found: list of detections in COCO's results format.
        threshold: lowest score.

    Returns:
        dict: "iou"; "score"; "matrix": rows of counts, true class by detected class in the order of the category ids,
        and last the background: its column holds missed objects, its row spurious detections; "right", "confused",
        "missed", "spurious": their sums.
    """
    index = {category: k for k, category in enumerate(truth.getCatIds())}
    matrix = np.zeros((len(index) + 1,) * 2, dtype=int)
    detections = defaultdict(list)
    for detection in sorted(found, key=lambda d: -d["score"]):
        if detection["score"] >= threshold:
            detections[detection["image_id"]].append(detection)
    for image in truth.imgs:
        objects = truth.imgToAnns.get(image, [])
        ignored = np.array([_is_ignored(o) for o in objects], dtype=bool)
        true = np.array([index[o["category_id"]] for o in objects], dtype=int)
        guessed = np.array([index[d["category_id"]] for d in detections[image]], dtype=int)
        match = _match(objects, detections[image], true, guessed, ignored)
        for d, g in enumerate(match):
            if g is None or not ignored[g]:
                matrix[-1 if g is None else true[g], guessed[d]] += 1
        missed_classes = true[[g for g in np.flatnonzero(~ignored) if g not in set(match)]]
        np.add.at(matrix[:, -1], missed_classes, 1)
    right, real = int(np.trace(matrix)), int(matrix[:-1, :-1].sum())
    missed, spurious = int(matrix[:-1, -1].sum()), int(matrix[-1, :-1].sum())
    sums = {"right": right, "confused": real - right, "missed": missed, "spurious": spurious}
    return {"iou": IOU, "score": threshold, "matrix": matrix.tolist(), **sums}


def _match(objects, detections, true, guessed, ignored):
    """Index of the object that each detection of an image takes, or None."""
    match = [None] * len(detections)
    if not objects or not detections:
        return match
    crowd = [int(bool(o.get("iscrowd"))) for o in objects]
    ious = mask_util.iou([d["bbox"] for d in detections], [o["bbox"] for o in objects], crowd)
    same, free = guessed[:, None] == true, ~ignored
    for allowed in (same & ~ignored, same & ignored, ~same & ~ignored):
        for d in range(len(detections)):
            overlap = np.where(allowed[d] & (free | ignored), ious[d], 0)
            best = int(overlap.argmax())
            if match[d] is None and overlap[best] >= IOU:
                match[d], free[best] = best, False
    return match


def most_confused(analysis: dict[str, Any], count: int = 15) -> list[tuple[str, str, int, float]]:
    """The pairs of classes that are taken for each other most often.

    Returns:
        list of (true class, detected class, how often, its share of the objects of the true class), sorted.
    """
    matrix, classes = np.array(analysis["confusion"]["matrix"]), analysis["classes"]
    pairs = [(matrix[t, d], t, d) for t in range(len(classes)) for d in range(len(classes)) if t != d and matrix[t, d]]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [(classes[t], classes[d], int(n), float(n / matrix[t].sum())) for n, t, d in pairs[:count]]

"""COCO evaluation: Detectron2's evaluator on pycocotools, and the same on hotcoco.

hotcoco gives pycocotools' numbers, bit for bit, in a small part of the time.

pycocotools stays the reference: its parameters and its summary are used as they are, only matching and accumulation are
hotcoco's; where the two need not agree, pycocotools does the work, and the log says so. hotcoco uses all cores;
``RAYON_NUM_THREADS`` is the one way to limit that.
"""

import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pretrain.files.text import for_terminal

from ..data.coco_files import KEYPOINTS, as_coco, evaluated, read_ground_truth
from .analysis import no_detections
from .masks import to_coco_json
from .replaced import replaced

logger = logging.getLogger(__name__)
_threads_of = None  # the process in which hotcoco has started its threads


class ReducedCOCOEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator on what the metrics read of the ground truth, and nothing else.

    Detectron2's own takes the whole file, and stops after the training at fields that no metric reads. Results and
    files are the same; so are the arguments, but for Detectron2's deprecated ones and ``use_fast_impl``: its C++
    evaluator is not used. Metadata with a ``json_file`` may stand for the name of a data set that is not registered.

    Raises:
        FileNotFoundError, ValueError: if the ground truth cannot be read.
    """

    def __init__(
        self,
        dataset_name: str | Metadata,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = False,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        metadata = dataset_name if isinstance(dataset_name, Metadata) else MetadataCatalog.get(dataset_name)
        if not metadata.get("json_file"):  # a data set that is no file: Detectron2 writes one
            options = {"max_dets_per_image": max_dets_per_image, "kpt_oks_sigmas": kpt_oks_sigmas}
            options |= {"use_fast_impl": False, "allow_cached_coco": allow_cached_coco}
            super().__init__(dataset_name, tasks, distributed, output_dir, **options)
            self._coco_api: COCO = as_coco(evaluated(self._coco_api.dataset, KEYPOINTS))
            return
        # Detectron2's __init__ but for its reading of the file
        self._logger = logging.getLogger(COCOEvaluator.__module__)
        self._distributed, self._output_dir, self._use_fast_impl = distributed, output_dir, False
        self._max_dets_per_image = [1, 10, max_dets_per_image or 100]
        self._tasks, self._kpt_oks_sigmas = tasks, kpt_oks_sigmas
        self._cpu_device = torch.device("cpu")
        self._metadata = metadata
        self._coco_api = read_ground_truth(metadata.json_file, KEYPOINTS if metadata.get("keypoint_names") else ())
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As Detectron2's; "pred_masks" may be :class:`~loco_det.evaluation.masks.PastedMasks`, too."""
        with replaced(coco_evaluation, instances_to_coco_json=to_coco_json):
            super().process(inputs, outputs)


class ReferenceCOCOEvaluator(ReducedCOCOEvaluator):
    """The same, but where nothing is detected AP is 0, as by COCO's definition.

    Detectron2 has NaN for every metric then, and none for masks. NaN stays for sizes and classes without objects.
    """

    def reset(self) -> None:
        super().reset()
        self._masks = False  # whether the detector predicts masks, which empty results in COCO's format do not tell

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        super().process(inputs, outputs)
        self._masks |= any(o["instances"].has("pred_masks") for o in outputs if "instances" in o)

    def _tasks_from_predictions(self, predictions):
        tasks = super()._tasks_from_predictions(predictions)
        return sorted({*tasks, "segm"}) if self._masks else tasks

    def _eval_predictions(self, predictions, img_ids=None):
        self._img_ids = img_ids
        super()._eval_predictions(predictions, img_ids)

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is None:
            self._logger.warning(f"nothing was detected: AP of {iou_type} is 0 for all objects that there are")
            coco_eval = self._of_nothing(iou_type)
        escaped = class_names and [for_terminal(name) for name in class_names]  # for the table in the log
        results = super()._derive_coco_results(coco_eval, iou_type, escaped)
        names = {f"AP-{shown}": f"AP-{name}" for shown, name in zip(escaped or (), class_names or (), strict=True)}
        return {names.get(metric, metric): value for metric, value in results.items()}

    def _of_nothing(self, task):
        """COCO's evaluation of no detections at all, as :func:`evaluate` returns it."""
        evaluation = COCOevalMaxDets(self._coco_api, no_detections(self._coco_api), task)
        if task != "keypoints":
            evaluation.params.maxDets = self._max_dets_per_image
        if self._img_ids is not None:
            evaluation.params.imgIds = self._img_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation


class FastCOCOEvaluator(ReferenceCOCOEvaluator):
    """The same with hotcoco's :func:`evaluate` in the middle.

    What :func:`unsupported` names is evaluated with pycocotools, with a warning in the log. ``evaluate()`` raises what
    :func:`evaluate` does, after the files are written.
    """

    def _eval_predictions(self, predictions, img_ids=None):
        detections = [d for p in predictions for d in p["instances"]]
        tasks = sorted(self._tasks or self._tasks_from_predictions(detections))
        fast = self._do_evaluation and len(detections) > 0
        if fast and (reason := unsupported(self._coco_api, detections, tasks)):
            logger.warning("%s: evaluated with pycocotools, which is slow, instead of hotcoco", reason)
            fast = False
        if not fast:
            super()._eval_predictions(predictions, img_ids)
            return
        # With no task left, which an empty list would not say, Detectron2 converts the classes to the data set's ids,
        # in place, and writes the file: it has no method for that alone
        with replaced(self, _tasks=iter(()), _use_fast_impl=True):
            super()._eval_predictions(predictions)
        for task in tasks:
            found = evaluate(self._coco_api, detections, task, img_ids, self._max_dets_per_image)
            self._results[task] = self._derive_coco_results(found, task, self._metadata.get("thing_classes"))


def unsupported(coco_gt: COCO, detections: list[dict[str, Any]], tasks: Sequence[str]) -> str | None:
    """Why hotcoco 1.3 need not equal pycocotools on these data; None if it does.

    Args:
        coco_gt: ground truth, a pycocotools ``COCO``.
        detections: list of dictionaries in COCO's results format.
        tasks: names of what is to be evaluated, as "bbox" and "segm".
    """
    if other := set(tasks) - {"bbox", "segm"}:
        return f"hotcoco is used for boxes and masks only, not for {min(other)}"
    if _threads_of not in (None, os.getpid()):
        return "this process was forked from one in which hotcoco had threads, and would wait for them forever"
    if not all(_whole(i, 0) for i in [*coco_gt.imgs, *coco_gt.cats]):
        return "the ground truth has an image or category id that is not a whole number from 0 to 2**53"
    # pycocotools takes a match with annotation 0 for none, hotcoco does not
    if not all(_whole(i, 1) for i in coco_gt.anns):
        return "the ground truth has an annotation id that is not a whole number from 1 to 2**53"
    everything = [*coco_gt.anns.values(), *detections]
    if not all(math.isfinite(sum(x.get("bbox") or (), x.get("score", 0))) for x in everything):
        return "a box or score is not finite"
    return None


def _whole(number, least):
    return isinstance(number, int) and least <= number < 2**53  # all of which are float64, too


def _without_masks(dataset):
    """The same without segmentations: hotcoco reads them, too, where boxes are evaluated."""
    annotations = [{k: v for k, v in a.items() if k != "segmentation"} for a in dataset["annotations"]]
    return dataset | {"annotations": annotations}


def evaluate(
    coco_gt: COCO,
    detections: list[dict[str, Any]],
    task: str,
    img_ids: Sequence[int] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
) -> COCOeval:
    """COCO's figures of boxes or masks.

    Args:
        coco_gt: ground truth, a pycocotools ``COCO`` with nothing that :func:`unsupported` names; not changed.
        detections: non-empty list of dictionaries in COCO's results format with "image_id", "category_id", "bbox"
            (left, top, width and height in pixels), "score" and, for masks, "segmentation" (RLE); not changed.
        task: "bbox" or "segm".
        img_ids: the images to evaluate; None: all.
        max_dets: three limits of detections per image; AP is that of the largest.

    Returns:
        A pycocotools ``COCOeval`` after ``summarize()``: ``stats`` has the 12 figures, ``eval`` the arrays
        "precision" and "scores" ``[T, R, K, A, M]`` and "recall" ``[T, K, A, M]``; ``evalImgs`` stays empty.

    Raises:
        ValueError: if a detection lacks a field, is of an image that is not in the ground truth, or has an RLE that
            cannot be read; or if an annotation lacks what pycocotools needs, too.
    """
    official, fast = prepare(coco_gt, detections, task, img_ids, max_dets)
    fast.evaluate()
    fast.accumulate()
    official.eval = {**(fast.eval or {}), "params": official.params}
    official.summarize()
    return official


def prepare(
    coco_gt: COCO,
    detections: list[dict[str, Any]],
    task: str,
    img_ids: Sequence[int] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
) -> tuple[COCOeval, Any]:
    """What :func:`evaluate` begins with, with its arguments and errors.

    Returns:
        pycocotools' ``COCOeval`` and hotcoco's, with the same parameters; nothing is evaluated yet.
    """
    global _threads_of
    _threads_of = os.getpid()
    shape = "bbox" if task == "bbox" else "segmentation"
    for key in ("iscrowd", "area", shape):
        for annotation in coco_gt.anns.values():
            if annotation.get(key) in (None, []):
                raise ValueError(f"annotation {annotation['id']} of the ground truth lacks {key}, which {task} needs")
    try:
        rows = [(d["image_id"], *d["bbox"], d["score"], d["category_id"]) for d in detections]
        shapes = [d[shape] for d in detections]
    except KeyError as error:
        raise ValueError(f"a detection lacks {error.args[0]}, which {task} needs") from None
    if strange := {row[0] for row in rows} - set(coco_gt.imgs):
        raise ValueError(f"{len(strange)} images of the detections are not in the ground truth, {strange.pop()} is one")
    official = COCOevalMaxDets(coco_gt, iouType=task)
    truth = hotcoco.COCO(_without_masks(coco_gt.dataset) if task == "bbox" else coco_gt.dataset)
    columns = np.array(rows, dtype=float)  # [N, 7]: dictionaries take hotcoco ten times as long
    if task == "bbox":
        found = truth.load_res(columns)
    else:
        found = truth.load_res(columns, segmentation=shapes)
        # The area of the mask, not of the box, makes a detection small, medium or large
        found.update_anns(ids=np.arange(1, len(shapes) + 1), area=hotcoco.mask.area(shapes))
    fast = hotcoco.COCOeval(truth, found, task)
    for params in (official.params, fast.params):
        params.maxDets = sorted(max_dets)
        params.catIds = np.unique(official.params.catIds).tolist()
        params.imgIds = np.unique(official.params.imgIds if img_ids is None else img_ids).tolist()
    return official, fast

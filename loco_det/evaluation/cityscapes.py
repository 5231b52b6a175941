"""Box AP and mask AP on Cityscapes, in one evaluator."""

import contextlib
import glob
import io
import os
from collections.abc import Sequence

import numpy as np
from detectron2.evaluation import CityscapesInstanceEvaluator
from detectron2.utils import comm
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.cityscapes import alias_cityscapesscripts
from .replaced import replaced

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # of COCOeval.stats, in this order


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's evaluator of Cityscapes mask AP, with box AP beside it, on numpy and Detectron2 of any age.

    Mask AP ("segm": AP and AP50) is that of cityscapesScripts: the mean over IoU 0.5 to 0.95 and the 8 classes, objects
    of less than 100 pixels and regions that are groups or void left out of the count.

    Box AP ("bbox") is COCO's, by pycocotools: the mean over IoU 0.5 to 0.95 and the classes, at most 100 detections an
    image. Cityscapes itself defines none, and LoCo does not say which one its Table 2 has. The ground truth is
    gtFine_instanceIds.png, as for the masks: the box around the pixels of each instance, of any size; its area (for
    APs, APm, APl) is the number of pixels. A group ("cargroup" and the like, a label id without instance number) is a
    crowd region as in Detectron2's loader: detections with most of their area in its box count neither as hits nor as
    misses. Void regions play no part. Converters that drop the groups count such detections as false.

    cityscapesScripts 2.3.0 is one function without arguments for this: it calls ``np.in1d``, which numpy 2.4 has no
    more, writes ``matches.json`` into the working directory, and cannot write numpy's integers as JSON. So ``np.in1d``
    is there while it runs, and it writes no files, of which none is read again by the evaluation.
    """

    def __init__(self, dataset_name: str):
        alias_cityscapesscripts()
        super().__init__(dataset_name)

    def reset(self) -> None:
        super().reset()
        self._boxes: list[tuple] = []  # (stem of the image, (N, 4) XYXY, (N,) scores, (N,) classes)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        super().process(inputs, outputs)
        for record, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            stem = os.path.basename(record["file_name"]).removesuffix("_leftImg8bit.png")
            boxes = found.pred_boxes.tensor.numpy().astype(float)
            self._boxes.append((stem, boxes, found.scores.tolist(), found.pred_classes.tolist()))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns {"bbox": {...}, "segm": {...}} in percent; None on all processes but the first."""
        import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as script

        with replaced(np, in1d=np.isin), replaced(script, writeDict2JSON=lambda *_: None):
            results = super().evaluate()
        gathered = comm.gather(self._boxes)
        if results is None:
            return None
        names = self._metadata.thing_classes
        predictions = {stem: rest for part in gathered for stem, *rest in part}
        truth = cityscapes_boxes(self._metadata.gt_dir, names)
        return {"bbox": box_ap(truth, predictions, names), **results}


def cityscapes_boxes(gt_dir: str, names: Sequence[str]) -> dict[str, list[tuple]]:
    """The boxes of the instances and groups of a split.

    Args:
        gt_dir: folder of a split below gtFine, with a folder for each city.
        names: of the classes, in the order of the predictions' class indices.

    Returns:
        dict: stem of the image (``city_000000_000000``) to a list of (class index, [x, y, width, height] in pixels,
        number of pixels, whether it is a group).
    """
    from cityscapesscripts.helpers.labels import name2label

    classes = {name2label[name].id: index for index, name in enumerate(names)}
    truth: dict[str, list[tuple]] = {}
    for path in sorted(glob.glob(os.path.join(gt_dir, "*", "*_gtFine_instanceIds.png"))):
        with Image.open(path, formats=["PNG"]) as image:
            ids = np.asarray(image)
        found = truth[os.path.basename(path).removesuffix("_gtFine_instanceIds.png")] = []
        for value in np.unique(ids).tolist():
            label = value // 1000 if value >= 1000 else value
            if label in classes:
                y, x = np.nonzero(ids == value)
                box = [int(v) for v in (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)]
                found.append((classes[label], box, len(x), value < 1000))
    return truth


def box_ap(truth: dict[str, list[tuple]], predictions: dict[str, Sequence], names: Sequence[str]) -> dict[str, float]:
    """COCO's AP of boxes.

    Args:
        truth: what :func:`cityscapes_boxes` returns; images without an object count, too.
        predictions: stem of the image to ((N, 4) boxes XYXY in pixels, N scores, N class indices).
        names: of the classes.

    Returns:
        dict: AP, AP50, AP75, APs, APm, APl and AP-<class> in percent; NaN where there is no ground truth.
    """
    entries, detections = [], []
    for image, (stem, objects) in enumerate(truth.items(), 1):
        for label, box, area, group in objects:
            entries.append((image, label + 1, box, {"area": area, "iscrowd": int(group)}))
        for (x0, y0, x1, y1), score, label in zip(*predictions.get(stem, ((), (), ())), strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            detections.append((image, label + 1, box, {"area": box[2] * box[3], "iscrowd": 0, "score": score}))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(entries, truth, names), _coco(detections, truth, names), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    results = {m: _percent(evaluation.stats[i]) for i, m in enumerate(METRICS)}
    precision = evaluation.eval["precision"][..., 0, -1]  # (IoU, recall, class); all sizes, most detections
    for index, name in enumerate(names):
        known = precision[:, :, index][precision[:, :, index] > -1]
        results[f"AP-{name}"] = _percent(known.mean() if known.size else -1)
    return results


def _percent(value):
    return float(value) * 100 if value >= 0 else float("nan")


def _coco(entries, truth, names):
    """A COCO object of (image id, category id, box, more) entries; ids from 1, as 0 means no match to pycocotools."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i, _ in enumerate(truth, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, **more}
            for i, (image, category, box, more) in enumerate(entries, 1)
        ],
    }
    coco.createIndex()
    return coco

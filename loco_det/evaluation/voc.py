"""Box AP on data in Pascal VOC's layout: VOC's, as papers report it, and COCO's beside it."""

import json
import logging
import os
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from pretrain.files.atomic import write_whole

from ..data.voc_files import VOCImage, read_annotation, read_split
from .coco import ReferenceCOCOEvaluator
from .voc_ap import Boxes, average_precisions

logger = logging.getLogger(__name__)

IOUS = tuple(percent / 100.0 for percent in range(50, 100, 5))
IGNORED = -1.0  # area of a difficult object: outside of every range of sizes, and what is outside is ignored


class VOCEvaluator(DatasetEvaluator):
    """AP of boxes by Pascal VOC's definition ("bbox") and by COCO's ("bbox_coco").

    "bbox" is what Detectron2's PascalVOCDetectionEvaluator gives, to the bit, and so what MoCo and those after it
    publish as AP, AP50 and AP75 on VOC2007 test. At each IoU from 0.5 to 0.95 it is VOC's own AP: on sets of 2007 the
    mean of the precisions at 11 recalls, so AP50 is VOC07's metric, and on later ones the area under the curve. Scores
    are rounded to three digits and boxes to a tenth of a pixel, as in VOC's files of results. It differs in one case:
    a class without an object that counts has NaN and is left out of the means, where Detectron2 has 0.

    "bbox_coco" is COCO's, on 101 recalls, with boxes and scores as they are, and at most 100 detections an image.

    Objects that are marked as difficult are neither hits nor misses. VOC leaves out every detection that overlaps such
    an object most. In COCO's evaluation they are ignored objects, not crowd regions: the IoU is the usual one, and a
    second detection of the same object is a false one.

    Args:
        dataset_name: of a registered set with ``dirname``, ``split``, ``year`` and ``thing_classes``.
        output_dir: folder for the ground truth and the predictions in COCO's format.
        coco_evaluator: the class that does COCO's evaluation.

    Raises:
        OSError, ValueError: naming the file, if one of the set's files cannot be read.
    """

    def __init__(self, dataset_name: str, output_dir: str, coco_evaluator: type[ReferenceCOCOEvaluator]):
        metadata = MetadataCatalog.get(dataset_name)
        self._classes = list(metadata.thing_classes)
        self._eleven_points = metadata.year == 2007
        names = dict.fromkeys(read_split(metadata.dirname, metadata.split))
        self._images = [read_annotation(metadata.dirname, name) for name in names]
        self._index = {image.name: index for index, image in enumerate(self._images)}
        path = ground_truth_path(output_dir, dataset_name)
        if comm.is_main_process():
            write_whole(path, json.dumps(coco_ground_truth(self._images, self._classes)))
        comm.synchronize()
        ids = {index: index for index in range(len(self._classes))}
        coco = Metadata(json_file=path, thing_classes=self._classes, thing_dataset_id_to_contiguous_id=ids)
        self._coco = coco_evaluator(coco, tasks=("bbox",), output_dir=output_dir)
        self.reset()

    def reset(self) -> None:
        self._coco.reset()
        self._found: list[tuple] = []  # (index of the image, (N, 4) corners, N scores, N classes)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        records = [{**record, "image_id": self._index[record["image_id"]]} for record in inputs]
        self._coco.process(records, outputs)
        for record, output in zip(records, outputs, strict=True):
            found = output["instances"].to("cpu")
            boxes = found.pred_boxes.tensor.numpy().copy()
            boxes[:, :2] += 1  # pixels count from 1; in the boxes' own precision, as in Detectron2
            scores = [float(f"{score:.3f}") for score in found.scores.tolist()]
            corners = np.array([float(f"{value:.1f}") for value in boxes.ravel().tolist()]).reshape(-1, 4)
            self._found.append((record["image_id"], corners, scores, found.pred_classes.tolist()))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns {"bbox": {...}, "bbox_coco": {...}} in percent; None on all processes but the first."""
        coco = self._coco.evaluate()
        gathered = comm.gather(self._found)
        if not comm.is_main_process():
            return None
        found = [entry for part in gathered for entry in part]
        voc = voc_metrics(self._images, self._classes, found, self._eleven_points)
        kind = "11 recalls" if self._eleven_points else "the area under the curve"
        figures = ", ".join(f"{key} {voc[key]:.3f}" for key in ("AP", "AP50", "AP75"))
        logger.info(f"box AP by Pascal VOC's definition ({kind}): {figures}. The table above is by COCO's")
        return {"bbox": voc, "bbox_coco": coco["bbox"]}


def ground_truth_path(output_dir: str, dataset_name: str) -> str:
    """Where the evaluator writes a set's ground truth in COCO's format; Detectron2 calls such files so, too."""
    return os.path.join(output_dir, f"{dataset_name}_coco_format.json")


def voc_metrics(
    images: list[VOCImage], classes: list[str], found: list[tuple], eleven_points: bool
) -> dict[str, float]:
    """VOC's AP.

    Args:
        images: the ground truth.
        classes: names, in the order of the class indices.
        found: (index of the image, (N, 4) xmin, ymin, xmax, ymax in pixels from 1, N scores, N class indices).
        eleven_points: as in :func:`average_precisions`.

    Returns:
        dict: AP, AP50, AP75 and AP-<class> in percent; NaN where no object counts.
    """
    objects = [(index, thing) for index, image in enumerate(images) for thing in image.objects]
    image = np.repeat([i for i, *_ in found], [len(scores) for _, _, scores, _ in found]).astype(int)
    corners = np.concatenate([np.zeros((0, 4)), *(boxes for _, boxes, _, _ in found)])
    scores, labels = (np.array([v for entry in found for v in entry[k]], kind) for k, kind in ((2, float), (3, int)))
    table = []
    for label, name in enumerate(classes):
        mine = [(index, thing) for index, thing in objects if thing.name == name]
        truth = Boxes(
            np.array([index for index, _ in mine], int), np.array([t.box for _, t in mine], float).reshape(-1, 4)
        )
        difficult = np.array([t.difficult for _, t in mine], bool)
        one = labels == label
        detected = Boxes(image[one], corners[one])
        table.append(average_precisions(truth, difficult, detected, scores[one], IOUS, eleven_points) * 100)
    aps = np.array(table)  # (class, IoU)
    counted = aps[~np.isnan(aps).any(1)]
    means = [np.mean(list(column)) if len(column) else np.nan for column in counted.T]
    result = {"AP": np.mean(means), "AP50": means[IOUS.index(0.5)], "AP75": means[IOUS.index(0.75)]}
    result |= {f"AP-{name}": np.mean(row) for name, row in zip(classes, aps, strict=True)}
    return {metric: float(value) for metric, value in result.items()}


def coco_ground_truth(images: list[VOCImage], classes: list[str]) -> dict[str, Any]:
    """The ground truth in COCO's format, with indices as ids of images and classes.

    Args:
        images: what was read.
        classes: names, in the order of the class indices; objects of other names are left out.
    """
    places = {name: index for index, name in enumerate(classes)}
    annotations: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        for thing in image.objects:
            if thing.name in places:
                x0, y0, x1, y1 = thing.box
                width, height = x1 - x0 + 1, y1 - y0 + 1
                annotation: dict[str, Any] = {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": places[thing.name],
                }
                area = IGNORED if thing.difficult else width * height
                annotation |= {"bbox": [x0 - 1, y0 - 1, width, height], "area": area, "iscrowd": 0}
                annotations.append(annotation)
    sizes = [{"id": i, "file_name": f"{im.name}.jpg", "height": im.height, "width": im.width}
             for i, im in enumerate(images)]  # fmt: skip
    categories = [{"id": index, "name": name} for name, index in places.items()]
    return {"images": sizes, "annotations": annotations, "categories": categories}

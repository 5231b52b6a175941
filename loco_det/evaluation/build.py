"""Evaluators: pycocotools' figures for COCO-format data, cityscapesScripts for Cityscapes, VOC's own for Pascal VOC."""

import os

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from .cityscapes import CityscapesEvaluator
from .coco import FastCOCOEvaluator, ReferenceCOCOEvaluator
from .voc import VOCEvaluator

# TEST.COCO_EVALUATOR -> class; both give the same figures
COCO_EVALUATORS = {"fast": FastCOCOEvaluator, "pycocotools": ReferenceCOCOEvaluator}


def build_evaluator(dataset_name: str, output_dir: str, coco_evaluator: str = "fast") -> DatasetEvaluator:
    """The evaluator of a registered data set, by its metadata's ``evaluator_type``.

    Args:
        dataset_name: name of the data set.
        output_dir: folder for the predictions in COCO's results format.
        coco_evaluator: for COCO-format data and Pascal VOC, a key of ``COCO_EVALUATORS``.

    Raises:
        ValueError: if there is no evaluator of that type or name.
    """
    kind, folder = evaluator_type(dataset_name), os.path.join(output_dir, "inference")
    if kind == "cityscapes_instance":
        return CityscapesEvaluator(dataset_name)
    if coco_evaluator not in COCO_EVALUATORS:
        raise ValueError(f"TEST.COCO_EVALUATOR {coco_evaluator!r}: use one of {', '.join(COCO_EVALUATORS)}")
    evaluator = COCO_EVALUATORS[coco_evaluator]
    if kind == "pascal_voc":
        return VOCEvaluator(dataset_name, folder, evaluator)
    return evaluator(dataset_name, output_dir=folder)


def ap_definition(dataset_name: str) -> str:
    """The definition of AP that a data set's evaluator has, in words; raises as :func:`evaluator_type`."""
    kind = evaluator_type(dataset_name)
    if kind == "pascal_voc":
        eleven = MetadataCatalog.get(dataset_name).get("year") == 2007
        return f"Pascal VOC's, {'11 recalls' if eleven else 'area under the curve'}"
    return {"coco": "COCO's", "cityscapes_instance": "Cityscapes'"}[kind]


def evaluator_type(dataset_name: str) -> str:
    """The evaluator of a data set: "coco", "cityscapes_instance" or "pascal_voc"; ValueError if there is none."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in ("coco", "cityscapes_instance", "pascal_voc"):
        raise ValueError(
            f"data set {dataset_name}: no evaluator for type {kind!r}; use COCO format, Cityscapes or Pascal VOC"
        )
    return kind

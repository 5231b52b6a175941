"""Evaluators: pycocotools for COCO-format data, cityscapesScripts for Cityscapes, both through Detectron2."""

import os
from unittest import mock

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator, COCOEvaluator


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's evaluator of Cityscapes instance segmentation (mask AP and AP50), on numpy of any age.

    cityscapesScripts 2.3.0 calls ``np.in1d``, which numpy 2.4 has no more, writes ``matches.json`` into the working
    directory, and cannot write numpy's integers as JSON. None of the files is read again by the evaluation.
    """

    def evaluate(self):
        import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as script

        with (
            mock.patch.object(np, "in1d", np.isin, create=True),
            mock.patch.object(script, "writeDict2JSON", lambda *_: None),
        ):
            return super().evaluate()


def build_evaluator(dataset_name, output_dir):
    """The evaluator of a registered data set, by its metadata's ``evaluator_type``.

    Args:
        dataset_name: name of the data set.
        output_dir: folder for the predictions in COCO's results format.

    Raises:
        ValueError: if there is no evaluator of that type.
    """
    if evaluator_type(dataset_name) == "coco":
        return COCOEvaluator(dataset_name, output_dir=os.path.join(output_dir, "inference"), use_fast_impl=False)
    return CityscapesEvaluator(dataset_name)


def evaluator_type(dataset_name):
    """The kind of evaluator of a data set, "coco" or "cityscapes_instance"; ValueError if there is none for it."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in ("coco", "cityscapes_instance"):
        raise ValueError(f"data set {dataset_name}: no evaluator for type {kind!r}; use COCO format or Cityscapes")
    return kind

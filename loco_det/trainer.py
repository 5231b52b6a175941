"""Detectron2's DefaultTrainer with our evaluators, guards, results file and pictures."""

import json
import logging
import math
import os
import time

import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from .checkpoint import GuardedCheckpointer
from .evaluation import build_evaluator
from .visualize import pick_records, save_comparisons

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates a detector; beside Detectron2's files it writes ``results.json`` and ``pictures/``."""

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        # a third of the time of a convolution on the CPU is saved by this layout
        return model.to(memory_format=torch.channels_last) if cfg.MODEL.DEVICE == "cpu" else model

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(dataset_name, cfg.OUTPUT_DIR)

    def build_hooks(self):
        # DefaultTrainer has no method to choose the checkpointer; its hooks take it from here
        guarded = GuardedCheckpointer(self.checkpointer.model, self.cfg.OUTPUT_DIR)
        guarded.checkpointables = self.checkpointer.checkpointables
        self.checkpointer = guarded
        return super().build_hooks()

    def resume_or_load(self, resume=True):
        """As Detectron2's, but a missing file, an incompletely filled backbone and nothing to resume are errors.

        Raises:
            FileNotFoundError: if there is nothing to resume, or no such weights.
            ValueError: if the weights do not fill the backbone.
        """
        if not resume:
            load_weights(self.checkpointer, self.cfg)
            return
        if not self.checkpointer.has_checkpoint():
            raise FileNotFoundError(f"{self.cfg.OUTPUT_DIR}: nothing to resume; leave out --resume to start anew")
        self.checkpointer.required = ""
        super().resume_or_load(resume)

    def train(self):
        """Train and evaluate; returns {dataset: {task: {metric: value}}} and writes results.json and pictures."""
        start = time.perf_counter()
        super().train()
        results = getattr(self, "_last_eval_results", {})
        if comm.is_main_process():
            finish(self.cfg, self.model, results, self.max_iter, time.perf_counter() - start)
        return results


def load_weights(checkpointer, cfg):
    """Load MODEL.WEIGHTS; random weights only when asked for by name.

    Raises:
        FileNotFoundError, ValueError: if the weights are missing, or do not fill what ``checkpointer`` requires.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a converted checkpoint, or random for a random initialisation")
    if cfg.MODEL.WEIGHTS == "random":
        logger.warning("MODEL.WEIGHTS random: the network starts from a random initialisation")
        return
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])


def evaluate(cfg):
    """Evaluate the whole detector in MODEL.WEIGHTS on DATASETS.TEST, as ``--eval-only``.

    Returns:
        dict: results; also written to results.json, with pictures.

    Raises:
        FileNotFoundError, ValueError: if the weights are missing or do not fill the whole detector.
    """
    model = Trainer.build_model(cfg)
    checkpointer = GuardedCheckpointer(model)
    checkpointer.required = ""
    load_weights(checkpointer, cfg)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        finish(cfg, model, results)
    return results


def finish(cfg, model, results, iteration=None, seconds=None):
    """Write ``results.json`` and, of the first test set, ``pictures/*.png``.

    Args:
        cfg: the config.
        model: the detector.
        results: what ``DefaultTrainer.test`` returned, for one data set or for several.
        iteration: how many iterations it was trained here; None if it was only evaluated.
        seconds: of this training, evaluation included.
    """
    if not cfg.DATASETS.TEST:
        return
    content = {
        "kind": "detection",
        "dataset": ", ".join(cfg.DATASETS.TEST),
        "iteration": iteration,
        "weights": cfg.MODEL.WEIGHTS,
        "backbone": f"ResNet-{cfg.MODEL.RESNETS.DEPTH}",
        "frozen": cfg.MODEL.BACKBONE.FREEZE_AT >= 5,
        "seconds": seconds,
        "results": _without_nan(results),
    }
    path = os.path.join(cfg.OUTPUT_DIR, "results.json")
    with open(f"{path}.tmp", "w") as f:
        json.dump(content, f, indent=2)
    os.replace(f"{path}.tmp", path)
    if cfg.TEST.NUM_PICTURES:
        name, folder = cfg.DATASETS.TEST[0], os.path.join(cfg.OUTPUT_DIR, "pictures")
        records = pick_records(DatasetCatalog.get(name), cfg.TEST.NUM_PICTURES)
        pairs = predict(cfg, model, records)
        save_comparisons(pairs, MetadataCatalog.get(name), folder, cfg.TEST.PICTURE_THRESHOLD)
        logger.info(f"results in {path}, pictures in {folder}")


def _without_nan(value):
    """The same with None for NaN, which JSON does not have: COCO's AP of sizes or classes without objects."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    return None if math.isnan(value) else value


def predict(cfg, model, records):
    """Run the detector on Detectron2 dataset dicts.

    Yields:
        tuple: dataset dict, and Instances at the image's size, on the CPU.
    """
    mapper = DatasetMapper(cfg, is_train=False)
    model.eval()
    for record in records:
        with torch.no_grad():
            yield record, model([mapper(record)])[0]["instances"].to("cpu")

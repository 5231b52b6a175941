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

from . import backbones  # noqa: F401, registers them
from .checkpoint import GuardedCheckpointer, check_file
from .evaluation import build_evaluator, evaluator_type
from .visualize import pick_records, save_comparisons

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates a detector; beside Detectron2's files it writes ``results.json`` and ``pictures/``.

    Attributes:
        weights: MODEL.WEIGHTS of the run's beginning, whatever a later --resume was given.
        seconds: that earlier parts of the run have taken.
    """

    def __init__(self, cfg):
        self.weights, self.seconds, self.begun = cfg.MODEL.WEIGHTS, 0.0, time.perf_counter()
        super().__init__(cfg)

    def state_dict(self):
        seconds = self.seconds + time.perf_counter() - self.begun
        return {**super().state_dict(), "weights": self.weights, "seconds": seconds}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.weights, self.seconds = state_dict["weights"], state_dict["seconds"]

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        # the faster layout for convolutions on the CPU
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
        """As Detectron2's, but weights that do not fill the backbone (resumed: the detector) are a ValueError."""
        if resume:
            self.checkpointer.required = ""
            super().resume_or_load(resume)
        elif self.cfg.MODEL.WEIGHTS == "random":
            logger.warning("MODEL.WEIGHTS random: the network starts from a random initialisation")
        else:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])

    def train(self):
        """Train and evaluate; returns {dataset: {task: {metric: value}}} and writes results.json and pictures."""
        old = os.path.join(self.cfg.OUTPUT_DIR, "results.json")
        if comm.is_main_process() and os.path.exists(old):
            os.remove(old)  # of an earlier run: if this one stops early, it must not pass for its result
        super().train()
        results = getattr(self, "_last_eval_results", {})
        if comm.is_main_process():
            state = {"iteration": self.max_iter - 1, "trainer": self.state_dict()}
            finish(self.cfg, self.model, results, state)
        return results


def check_run(cfg, resume=False, eval_only=False):
    """What can be said before any data or network is there.

    Args:
        cfg: the config, with the data sets registered.
        resume, eval_only: whether the run is a resumed one, or an evaluation only.

    Raises:
        FileNotFoundError: if there is nothing to resume, or no such weights.
        ValueError: if no weights or no data are named, there is no evaluator for the data, or the batch does not fit
            SOLVER.REFERENCE_WORLD_SIZE.
    """
    if resume:
        if not os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
            raise FileNotFoundError(f"{cfg.OUTPUT_DIR}: nothing to resume; leave out --resume to start anew")
    elif not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a converted checkpoint, or random for a random initialisation")
    elif cfg.MODEL.WEIGHTS != "random":
        check_file(cfg.MODEL.WEIGHTS)
    if not (cfg.DATASETS.TEST if eval_only else cfg.DATASETS.TRAIN):
        raise ValueError(
            f"no data to {'evaluate' if eval_only else 'train'} on: name a --config-file, "
            f"DATASETS.{'TEST' if eval_only else 'TRAIN'} or DATASETS.CUSTOM"
        )
    for name in cfg.DATASETS.TEST:
        evaluator_type(name)
    world = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if world and cfg.SOLVER.IMS_PER_BATCH % world:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of SOLVER.REFERENCE_WORLD_SIZE {world}: "
            "set that to 0 to take batch, learning rate and schedule as they stand"
        )


def evaluate(cfg, resume=False):
    """Evaluate a whole detector on DATASETS.TEST, as ``--eval-only``: MODEL.WEIGHTS, or resumed the run's last one.

    Returns:
        dict: results; also written to results.json, with pictures.

    Raises:
        FileNotFoundError, ValueError: if the weights are missing or do not fill the whole detector.
    """
    model = Trainer.build_model(cfg)
    state = {}
    checkpointer = GuardedCheckpointer(model, cfg.OUTPUT_DIR)
    checkpointer.required = ""
    if resume:
        state = checkpointer.load(checkpointer.get_checkpoint_file())
    elif cfg.MODEL.WEIGHTS != "random":
        state = checkpointer.load(cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        finish(cfg, model, results, state)
    return results


def finish(cfg, model, results, state):
    """Write ``results.json`` and, of the first test set, ``pictures/*.png``.

    Args:
        cfg: the config.
        model: the detector.
        results: what ``DefaultTrainer.test`` returned, for one data set or for several.
        state: of the detector's training, as in its checkpoint: "iteration", and "trainer" with the weights that it
            started from and the seconds that it took; empty if not known.
    """
    if not cfg.DATASETS.TEST:
        return
    trained = state.get("trainer", {})
    content = {
        "kind": "detection",
        "dataset": ", ".join(cfg.DATASETS.TEST),
        "iteration": state["iteration"] + 1 if "iteration" in state else None,
        "weights": trained.get("weights", cfg.MODEL.WEIGHTS),
        "backbone": cfg.MODEL.ENCODER or f"ResNet-{cfg.MODEL.RESNETS.DEPTH}",
        "frozen": cfg.MODEL.BACKBONE.FREEZE_AT >= 5,
        "seconds": trained.get("seconds"),
        "results": _without_nan(results),
    }
    path = os.path.join(cfg.OUTPUT_DIR, "results.json")
    with open(f"{path}.tmp", "w") as f:
        json.dump(content, f, indent=2)
    os.replace(f"{path}.tmp", path)
    name, folder = cfg.DATASETS.TEST[0], os.path.join(cfg.OUTPUT_DIR, "pictures")
    pairs = predict(cfg, model, pick_records(DatasetCatalog.get(name), cfg.TEST.NUM_PICTURES))
    save_comparisons(pairs, MetadataCatalog.get(name), folder, cfg.TEST.PICTURE_THRESHOLD)  # removes older ones
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

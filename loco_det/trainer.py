"""Detectron2's DefaultTrainer with our evaluators, guards, results file and pictures."""

import logging
import os
import time

import torch
from detectron2.engine import DefaultTrainer, hooks
from detectron2.utils import comm

from pretrain.engine.sigterm import StopOnSigterm

from . import backbones, roi_heads  # noqa: F401, registers them
from .checkpoint import GuardedCheckpointer, check_file
from .data.loader import Batches, build_train_loader, seed_everything, start_workers
from .evaluation import COCO_EVALUATORS, build_evaluator, evaluator_type
from .frozen import speed_up
from .hooks import Evaluation, SamePreciseBN, WandbWriter
from .results import finish

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates a detector; beside Detectron2's files it writes ``results.json`` and ``pictures/``.

    Attributes:
        weights: MODEL.WEIGHTS of the run's beginning, whatever a later --resume was given.
        seconds: that earlier parts of the run have taken.
        evaluation_seconds: of the latest evaluation.
    """

    evaluation_seconds = 0.0

    def __init__(self, cfg):
        self.weights, self.seconds, self.begun = cfg.MODEL.WEIGHTS, 0.0, time.perf_counter()
        super().__init__(cfg)

    def state_dict(self):
        seconds = self.seconds + time.perf_counter() - self.begun
        batch = self.cfg.SOLVER.IMS_PER_BATCH
        own = {"weights": self.weights, "seconds": seconds, "seed": self.cfg.SEED, "batch": batch}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.weights, self.seconds = state_dict["weights"], state_dict["seconds"]
        if self.cfg.SEED != state_dict["seed"]:
            raise ValueError(f"SEED is {self.cfg.SEED}, but the run began with {state_dict['seed']}: resume with that")
        batch = self.cfg.SOLVER.IMS_PER_BATCH
        if batch != state_dict["batch"]:  # iterations and learning rates in the checkpoint are for that batch
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch}, but the run began with {state_dict['batch']}: resume "
                "with as many GPUs, or with the run's config.yaml and SOLVER.REFERENCE_WORLD_SIZE 0"
            )

    def run_step(self):
        """One iteration; its random numbers are those of the seed, the process and the iteration."""
        seed_everything(self.cfg.SEED, comm.get_rank(), self.iter)
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self._remedy()}") from None

    def _remedy(self):
        """What most often helps against a loss that is not finite."""
        resnets, tuned = self.cfg.MODEL.RESNETS, self.cfg.MODEL.BACKBONE.FREEZE_AT < 5
        if tuned and resnets.NORM == "FrozenBN":
            return (
                "self-supervised backbones are often not stable when fine-tuned with frozen norms: set "
                "MODEL.RESNETS.NORM SyncBN (or BN), or lower SOLVER.BASE_LR"
            )
        return "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, and check the data with tools/check_dataset.py"

    @classmethod
    def build_train_loader(cls, cfg):
        if cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler" and not cfg.MODEL.LOAD_PROPOSALS:
            return build_train_loader(cfg)
        logger.warning(f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN}: --resume will draw other images")
        return start_workers(super().build_train_loader(cfg))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return start_workers(super().build_test_loader(cfg, dataset_name))

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        if cfg.MODEL.DEVICE == "cpu":
            model = model.to(memory_format=torch.channels_last)  # the faster layout for convolutions there
            for module in model.modules():  # under torchrun torch's SyncBN refuses the CPU, also in its only process
                if isinstance(module, torch.nn.SyncBatchNorm):
                    module.__class__ = torch.nn.BatchNorm2d
        if cfg.MODEL.FAST_FROZEN.ENABLED:
            speed_up(getattr(model.backbone, "bottom_up", model.backbone), cfg.MODEL.FAST_FROZEN.COMPILE)
        return model

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(dataset_name, cfg.OUTPUT_DIR, cfg.TEST.COCO_EVALUATOR)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """As Detectron2's, and notes how long it took."""
        begun = time.perf_counter()
        results = super().test(cfg, model, evaluators)
        cls.evaluation_seconds = time.perf_counter() - begun
        return results

    def build_hooks(self):
        # DefaultTrainer has no method to choose the checkpointer; its hooks take it from here
        guarded = GuardedCheckpointer(self.checkpointer.model, self.cfg.OUTPUT_DIR)
        guarded.checkpointables = self.checkpointer.checkpointables
        self.checkpointer = guarded
        stop = StopOnSigterm(self.cfg.SOLVER.CHECKPOINT_PERIOD)
        timer, scheduler, *built = (_ours(hook, stop) for hook in super().build_hooks())
        return [timer, scheduler, stop, *built]

    def build_writers(self):
        return super().build_writers() + ([WandbWriter(self.cfg)] if self.cfg.WANDB.PROJECT else [])

    def resume_or_load(self, resume=True):
        """As Detectron2's, but weights that do not fill the backbone (resumed: the detector) are a ValueError."""
        if resume:
            self.checkpointer.required = ""
            super().resume_or_load(resume)
        elif self.cfg.MODEL.WEIGHTS == "random":
            logger.warning("MODEL.WEIGHTS random: the network starts from a random initialisation")
        else:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])

    def before_train(self):
        batches = getattr(self._trainer.data_loader, "batch_sampler", None)
        if isinstance(batches, Batches):
            batches.start = self.start_iter
        super().before_train()
        newest = os.path.basename(self.checkpointer.get_checkpoint_file())
        if self.start_iter >= self.max_iter and newest != "model_final.pth":
            self._end_last_iteration()

    def _end_last_iteration(self):
        """What the last iteration of a resumed run lacks, which was stopped in its precise BN."""
        self.iter = self.max_iter - 1
        for hook in self._hooks:
            if isinstance(hook, hooks.PreciseBN | hooks.PeriodicCheckpointer):
                hook.after_step()

    def train(self):
        """Train and evaluate; returns {dataset: {task: {metric: value}}} and writes results.json and pictures."""
        old = os.path.join(self.cfg.OUTPUT_DIR, "results.json")
        if comm.is_main_process() and os.path.exists(old):
            os.remove(old)  # of an earlier run: if this one stops early, it must not pass for its result
        super().train()
        results = getattr(self, "_last_eval_results", {})
        if comm.is_main_process():
            trained = self.state_dict()
            trained["seconds"] -= self.evaluation_seconds  # as in the last checkpoint, which is written before it
            state = {"iteration": self.max_iter - 1, "trainer": trained}
            # In several processes self.model is DistributedDataParallel; the checkpointer has what is in it
            finish(self.cfg, self.checkpointer.model, results, state, self.evaluation_seconds)
        return results


def _ours(hook, stop):
    """A hook of Detectron2's, or ours in its place."""
    if isinstance(hook, hooks.PreciseBN) and not hook._disabled:
        return SamePreciseBN(hook._period, hook._model, hook._data_loader, hook._num_iter, stop)
    return Evaluation(hook._period, hook._func, stop) if isinstance(hook, hooks.EvalHook) else hook


def check_run(cfg, resume=False, eval_only=False):
    """What can be said before any data or network is there.

    Args:
        cfg: the config, with the data sets registered.
        resume, eval_only: whether the run is a resumed one, or an evaluation only.

    Raises:
        FileNotFoundError: if there is nothing to resume, or no such weights.
        ValueError: if no weights or no data are named, there is no evaluator for the data or of that name, or the batch
            does not fit SOLVER.REFERENCE_WORLD_SIZE.
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
    if cfg.TEST.COCO_EVALUATOR not in COCO_EVALUATORS:
        raise ValueError(f"TEST.COCO_EVALUATOR {cfg.TEST.COCO_EVALUATOR!r}: use one of {', '.join(COCO_EVALUATORS)}")
    world = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if world and cfg.SOLVER.IMS_PER_BATCH % world:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of SOLVER.REFERENCE_WORLD_SIZE {world}: "
            "set that to 0 to take batch, learning rate and schedule as they stand"
        )


def previous_seed(output_dir):
    """The seed of the run in a folder, from its latest checkpoint; ValueError if that has none."""
    path = GuardedCheckpointer(torch.nn.Module(), output_dir).get_checkpoint_file()
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["trainer"]["seed"]
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{path}: no checkpoint of a run that can be resumed ({type(error).__name__})") from None


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
        finish(cfg, model, results, state, Trainer.evaluation_seconds)
    return results

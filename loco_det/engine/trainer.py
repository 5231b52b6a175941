"""Detectron2's DefaultTrainer with our evaluators, guards, results file and pictures."""

import contextlib
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, hooks
from detectron2.utils import comm
from torch import nn

from pretrain.engine.estimate import TimeEstimate, times_due, warning_of_size
from pretrain.engine.writers import LinesFirst, MetricPrinter, MetricsWriter, TensorboardWriter
from pretrain.files.checkpoints import (
    checkpoint_names,
    differing_keys,
    newest_of_all,
    refuse_other_config,
    saved_config,
)
from pretrain.files.safe_load import read_own
from pretrain.processes.sigterm import StopOnSigterm

from ..data.loader import Batches, build_train_loader, seed_everything, start_workers
from ..data.mapper import ImageMapper
from ..evaluation.build import COCO_EVALUATORS, build_evaluator, evaluator_type
from ..modeling import backbones, roi_heads  # noqa: F401, registers them
from ..modeling.frozen import speed_up
from .checkpoint import GuardedCheckpointer, check_file
from .hooks import EvaluationHook, SamePreciseBN, WandbWriter
from .outputs import PREDICTIONS, finish
from .problems import record, recorded

logger = logging.getLogger(__name__)
# What may change when a run is resumed, because no weight depends on it. Of the data the content counts, not the place
FREE = {
    "OUTPUT_DIR", "SEED", "MODEL.DEVICE", "MODEL.FAST_FROZEN", "DATALOADER.NUM_WORKERS", "DATASETS", "WANDB",
    "PUBLISHED", "VIS_PERIOD", "CUDNN_BENCHMARK", "SOLVER.CHECKPOINT_PERIOD", "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TEST", "TEST.EXPECTED_RESULTS", "TEST.EVAL_PERIOD",
    "TEST.KEYPOINT_OKS_SIGMAS", "TEST.DETECTIONS_PER_IMAGE", "TEST.AUG", "TEST.COCO_EVALUATOR", "TEST.NUM_PICTURES",
    "TEST.PICTURE_THRESHOLD",
}  # fmt: skip
# Measured by benchmarks/detection_step.py with a frozen ResNet-50 on 2 images of 800 x 1216 (2 cores of an AMD EPYC)
STEP_SECONDS = 5.0  # for a million pixels
FORWARD = 0.4  # time of an image in evaluation or precise BN, x that of an image in a step


class Trainer(DefaultTrainer):
    """Trains and evaluates a detector; beside Detectron2's files it writes ``results.json`` and ``pictures/``.

    Attributes:
        weights: MODEL.WEIGHTS of the run's beginning.
        data_digest: :attr:`Batches.digest` of the training data; None of Detectron2's own loaders.
        seconds: that earlier parts of the run have taken.
        evaluation: the latest one, an :class:`Evaluation`.
    """

    def __init__(self, cfg):
        self.evaluation = Evaluation()
        self.weights, self.seconds, self.begun = cfg.MODEL.WEIGHTS, 0.0, time.perf_counter()
        super().__init__(cfg)

    def state_dict(self):
        seconds = self.seconds + time.perf_counter() - self.begun
        batch = self.cfg.SOLVER.IMS_PER_BATCH
        own = {"weights": self.weights, "seconds": seconds, "seed": self.cfg.SEED, "batch": batch}
        batches = self._trainer.data_loader.batch_sampler
        if isinstance(batches, Batches) and len(self.cfg.DATASETS.TRAIN) == 1:
            own["images"] = {self.cfg.DATASETS.TRAIN[0]: len(batches.records)}
        return {**super().state_dict(), **own, "config": self.cfg.dump(), "data": self.data_digest}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.weights, self.seconds = state_dict["weights"], state_dict["seconds"]
        if state_dict.get("data") not in (None, self.data_digest):  # version 0.1 did not store it
            names = ", ".join(self.cfg.DATASETS.TRAIN)
            raise ValueError(
                f"{self.cfg.OUTPUT_DIR} is a run on other images or annotations than {names} has now: resume it on "
                "those that it began with, or start anew in another OUTPUT_DIR"
            )

    @property
    def data_digest(self):
        batches = self._trainer.data_loader.batch_sampler
        return batches.digest if isinstance(batches, Batches) else None

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
        return start_workers(build_detection_train_loader(cfg, mapper=ImageMapper(cfg, is_train=True)))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = ImageMapper(cfg, is_train=False)
        return start_workers(build_detection_test_loader(cfg, dataset_name, mapper=mapper))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        try:
            model = super().build_model(without_sync(cfg) if cfg.MODEL.DEVICE == "cpu" else cfg)
        except KeyError as error:  # of a registry, with a table of all that is in it
            raise ValueError(f"the config names what is not there: {str(error.args[0]).splitlines()[0]}") from None
        if cfg.MODEL.DEVICE == "cpu":
            model = model.to(memory_format=torch.channels_last)  # the faster layout for convolutions there
        if cfg.MODEL.FAST_FROZEN.ENABLED:
            speed_up(getattr(model.backbone, "bottom_up", model.backbone), cfg.MODEL.FAST_FROZEN.COMPILE)
        return model

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(dataset_name, cfg.OUTPUT_DIR, cfg.TEST.COCO_EVALUATOR)

    def build_hooks(self):
        # DefaultTrainer has no method to choose the checkpointer; its hooks take it from here
        guarded = GuardedCheckpointer(self.checkpointer.model, self.cfg.OUTPUT_DIR)
        guarded.checkpointables = self.checkpointer.checkpointables
        self.checkpointer = guarded
        stop = StopOnSigterm(self.cfg.SOLVER.CHECKPOINT_PERIOD)
        timer, scheduler, *built = (self._ours(hook, stop) for hook in super().build_hooks())
        lines = [LinesFirst(hook._writers, hook._period) for hook in built if isinstance(hook, hooks.PeriodicWriter)]
        estimate = [TimeEstimate(self.cfg.MODEL.DEVICE, self._extras(built))] if comm.is_main_process() else []
        return [timer, scheduler, *lines, stop, *built, *estimate]

    def _ours(self, hook, stop):
        """A hook of Detectron2's, or ours in its place."""
        if isinstance(hook, hooks.PreciseBN) and not hook._disabled:
            return SamePreciseBN(hook._period, hook._model, hook._data_loader, hook._num_iter, stop)
        if isinstance(hook, hooks.EvalHook):
            return EvaluationHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate, stop)
        return hook

    def _extras(self, built):
        """What else takes time until the end, as :class:`TimeEstimate` has it."""
        test, batch = self.cfg.TEST, self.cfg.SOLVER.IMS_PER_BATCH
        times = times_due(self.start_iter, self.max_iter, test.EVAL_PERIOD)
        images = sum(len(DatasetCatalog.get(name)) for name in self.cfg.DATASETS.TEST)
        precise = test.PRECISE_BN.NUM_ITER if any(isinstance(hook, hooks.PreciseBN) for hook in built) else 0
        return [("precise BN", times * precise * FORWARD), ("evaluation", times * images / batch * FORWARD)]

    def _evaluate(self):
        """For the hook: an evaluation that fails before the last one costs a warning, and not the training."""
        self.evaluation = evaluate_each(self.cfg, self.model)
        self._last_eval_results = self.evaluation.results
        return self.evaluation.results

    def build_writers(self):
        out = self.cfg.OUTPUT_DIR
        metrics = MetricsWriter(os.path.join(out, "metrics.json"))
        writers = [MetricPrinter(self.max_iter), metrics, TensorboardWriter(out)]
        return writers + ([WandbWriter(self.cfg)] if self.cfg.WANDB.PROJECT else [])

    def resume_or_load(self, resume=True):
        """As Detectron2's, but weights that do not fill the backbone (resumed: the detector) are a ValueError, and a
        run goes on from its newest checkpoint that is whole."""
        if resume:
            self.checkpointer.required = ""
            self.checkpointer.resume()
            self.start_iter = self.iter + 1  # the checkpoint has the iteration that was finished
        elif self.cfg.MODEL.WEIGHTS == "random":
            logger.warning("MODEL.WEIGHTS random: the network starts from a random initialisation")
        else:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])

    def before_train(self):
        batches = getattr(self._trainer.data_loader, "batch_sampler", None)
        if isinstance(batches, Batches):
            batches.start = self.start_iter
        super().before_train()
        if self.start_iter >= self.max_iter and checkpoint_names(self.cfg.OUTPUT_DIR)[0] != "model_final.pth":
            self._end_last_iteration()

    def _end_last_iteration(self):
        """What the last iteration of a resumed run lacks, which was stopped in its precise BN."""
        self.iter = self.max_iter - 1
        for hook in self._hooks:
            if isinstance(hook, hooks.PreciseBN | hooks.PeriodicCheckpointer):
                hook.after_step()

    def train(self):
        """Train and evaluate; writes results.json and pictures.

        Returns:
            dict: {task: {metric: value}}, of several test sets {dataset: {task: {metric: value}}}.

        Raises:
            UnfinishedRun: if the training has ended, but not all that comes after it has succeeded.
        """
        old = os.path.join(self.cfg.OUTPUT_DIR, "results.json")
        if comm.is_main_process() and os.path.exists(old):
            os.remove(old)  # of an earlier run: if this one stops early, it must not pass for its result
        problems = []
        try:
            super().train()
        except Exception as error:
            if self.iter < self.max_iter or not comm.is_main_process():
                raise
            record(problems, "end of the training", error)  # of hooks, when the last checkpoint is written
        done = self.evaluation
        if comm.is_main_process():
            trained = self.state_dict()
            trained["seconds"] -= done.seconds  # as in the last checkpoint, which is written before it
            state = {"iteration": self.max_iter - 1, "trainer": trained}
            # In several processes self.model is DistributedDataParallel; the checkpointer has what is in it
            model, problems = self.checkpointer.model, [*done.problems, *problems]
            finish(self.cfg, model, done.results, state, done.seconds, problems)
        return done.results


def without_sync(cfg: CfgNode) -> CfgNode:
    """The config of the same network with BN in place of SyncBN, which torch refuses on the CPU, also in one process.

    Args:
        cfg: of a detector; not changed.

    Returns:
        CfgNode: with every NORM that is SyncBN set to BN: both have the same parameters, and normalise alike in one
        process.
    """
    cfg = cfg.clone()
    cfg.defrost()
    _replace_norms(cfg)
    cfg.freeze()
    return cfg


def _replace_norms(node: CfgNode) -> None:
    for key, value in node.items():
        if isinstance(value, dict):
            _replace_norms(value)
        elif key == "NORM" and value == "SyncBN":
            node[key] = "BN"


@dataclass
class Evaluation:
    """What an evaluation gave.

    Attributes:
        results: task ("bbox", "segm") -> metric -> percent; of several test sets, data set -> that.
        seconds: that it took.
        problems: what has failed, a line each.
    """

    results: dict = field(default_factory=dict)
    seconds: float = 0.0
    problems: list = field(default_factory=list)


def evaluate_each(cfg, model):
    """Evaluate a detector on every data set of DATASETS.TEST; one that fails does not take the others along.

    In several processes it does, because the others would wait for the one that went on.

    Returns:
        Evaluation
    """
    done, begun, training = Evaluation(), time.perf_counter(), model.training
    for name in cfg.DATASETS.TEST:
        alone = cfg.clone()
        alone.defrost()
        alone.DATASETS.TEST = (name,)
        done.results[name] = {}
        step = recorded(done.problems, f"evaluation on {name}")
        with step if comm.get_world_size() == 1 else contextlib.nullcontext():
            # Of an earlier evaluation, or of another data set: the analysis would take them for this one's
            Path(cfg.OUTPUT_DIR, PREDICTIONS).unlink(missing_ok=True)
            done.results[name] = Trainer.test(alone, model)
        model.train(training)  # Detectron2 sees to that only if nothing fails, and then refuses to train
    if len(done.results) == 1:
        (done.results,) = done.results.values()
    done.seconds = time.perf_counter() - begun
    return done


def size_warning(cfg):
    """What to say before training on a CPU with steps that are sized for GPUs; None if there is nothing to say.

    Args:
        cfg: the config, whose batch is not yet that of one process (SOLVER.REFERENCE_WORLD_SIZE).
    """
    images = cfg.SOLVER.IMS_PER_BATCH // (cfg.SOLVER.REFERENCE_WORLD_SIZE or 1)
    height = max(cfg.INPUT.MIN_SIZE_TRAIN)
    width = min(height * 4 // 3, cfg.INPUT.MAX_SIZE_TRAIN)
    return warning_of_size(cfg.MODEL.DEVICE, images, height, width, STEP_SECONDS, "configs/cpu_loco_frozen.yaml")


def check_run(cfg, resume=False, eval_only=False):
    """What can be said before any data or network is there.

    Args:
        cfg: the config, with the data sets registered.
        resume, eval_only: whether the run is a resumed one, or an evaluation only.

    Raises:
        FileNotFoundError: if there is nothing to resume, or no such weights.
        ValueError: if no weights or no data are named, there is no evaluator for the data or of that name, mixed
            precision is to be trained on another device than a GPU, a step is the last iteration, or the batch does
            not fit SOLVER.REFERENCE_WORLD_SIZE.
    """
    if resume:
        if not checkpoint_names(cfg.OUTPUT_DIR):
            raise FileNotFoundError(f"{cfg.OUTPUT_DIR}: nothing to resume; leave out --resume to start anew")
    elif not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a converted checkpoint, or random for a random initialisation")
    elif cfg.MODEL.WEIGHTS != "random":
        check_file(cfg.MODEL.WEIGHTS)
    if cfg.SOLVER.AMP.ENABLED and not eval_only and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError(
            f"SOLVER.AMP.ENABLED True needs a GPU, for Detectron2 trains in float16 there only: on MODEL.DEVICE "
            f"{cfg.MODEL.DEVICE} set it to False"
        )
    if not (cfg.DATASETS.TEST if eval_only else cfg.DATASETS.TRAIN):
        raise ValueError(
            f"no data to {'evaluate' if eval_only else 'train'} on: name a --config-file, "
            f"DATASETS.{'TEST' if eval_only else 'TRAIN'} or DATASETS.CUSTOM"
        )
    if not eval_only and cfg.SOLVER.MAX_ITER in cfg.SOLVER.STEPS:
        raise ValueError(
            f"SOLVER.STEPS {tuple(cfg.SOLVER.STEPS)} has SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: no iteration is left "
            "after it, leave it out"
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


def check_resumed(cfg):
    """Refuse to go on with other values of keys that decide what is learned; to be called before anything is written.

    Args:
        cfg: the config of the resumed run, batch and schedule scaled to the number of processes. A negative SEED,
            which stands for any, and an empty MODEL.WEIGHTS become the run's.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if none can be read, or the run began with other values.
    """
    saved = _saved_trainer(cfg)
    if cfg.SEED < 0:
        cfg.SEED = saved["seed"]
    cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or saved["weights"]
    if cfg.SEED != saved["seed"]:
        raise ValueError(f"SEED is {cfg.SEED}, but the run began with {saved['seed']}: resume with that")
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch != saved["batch"]:  # iterations and learning rates in the checkpoint are for that batch
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, but the run began with {saved['batch']}: resume "
            "with as many GPUs, or with the run's config.yaml and SOLVER.REFERENCE_WORLD_SIZE 0"
        )
    if "config" in saved:  # version 0.1 did not store it
        refuse_other_config(cfg.OUTPUT_DIR, differing_keys(cfg, saved_config(saved), FREE))


def check_evaluated(cfg, resume):
    """The config of an evaluation: that of the run in its folder, if there is one, but for keys that decide no weight.

    Results and ``config.yaml`` would describe another training than that of the network otherwise.

    Args:
        cfg: the config, not scaled to a number of processes.
        resume: whether the run's last checkpoint is evaluated, and not MODEL.WEIGHTS.

    Returns:
        CfgNode: ``cfg``, scaled to the number of processes that the run was trained in.

    Raises:
        FileNotFoundError, ValueError: as :func:`check_resumed`.
    """
    if not (resume or checkpoint_names(cfg.OUTPUT_DIR)):
        return cfg
    saved = _saved_trainer(cfg)
    if "config" not in saved:
        return cfg
    run = saved_config(saved)
    cfg = Trainer.auto_scale_workers(cfg, run["SOLVER.REFERENCE_WORLD_SIZE"] or cfg.SOLVER.REFERENCE_WORLD_SIZE)
    cfg.defrost()
    if resume:
        cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or saved["weights"]
    free = FREE if resume else FREE | {"MODEL.WEIGHTS"}
    refuse_other_config(cfg.OUTPUT_DIR, differing_keys(cfg, run, free))
    return cfg


def _saved_trainer(cfg):
    """The "trainer" of the newest whole checkpoint, with what every one of ours has."""

    def check(content):
        trainer = content["trainer"]
        if not (isinstance(trainer["seed"], int) and isinstance(trainer["weights"], str) and trainer["batch"] > 0):
            raise TypeError("its trainer's state is none of ours")

    return read_own(newest_of_all(cfg.OUTPUT_DIR, check, warn=False))["trainer"]


def evaluate(cfg, resume=False):
    """Evaluate a whole detector on DATASETS.TEST, as ``--eval-only``: MODEL.WEIGHTS, or resumed the run's last one.

    Returns:
        dict: results; also written to results.json, with pictures.

    Raises:
        FileNotFoundError, ValueError: if the weights are missing or do not fill the whole detector.
        UnfinishedRun: if not all of evaluation, analysis and pictures has succeeded.
    """
    model = Trainer.build_model(cfg)
    state = {}
    checkpointer = GuardedCheckpointer(model, cfg.OUTPUT_DIR)
    checkpointer.required = ""
    if resume:
        state = checkpointer.resume()
    elif cfg.MODEL.WEIGHTS != "random":
        state = checkpointer.load(cfg.MODEL.WEIGHTS)
    done = evaluate_each(cfg, model)
    if comm.is_main_process():
        finish(cfg, model, done.results, state, done.seconds, done.problems, resume)
    return done.results

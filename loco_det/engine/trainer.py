"""Training of a detector, on Detectron2's DefaultTrainer."""

import functools
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.utils.data import DataLoader

from pretrain.engine.estimate import TimeEstimate, times_due
from pretrain.engine.writers import LinesFirst, MetricPrinter, MetricsWriter, TensorboardWriter
from pretrain.files.checkpoints import checkpoint_names
from pretrain.processes.loader import Loader
from pretrain.processes.sigterm_hook import StopOnSigterm

from ..data.loader import Batches, build_train_loader, seed_everything
from ..data.mapper import ImageMapper
from ..evaluation.build import build_evaluator
from ..evaluation.cityscapes import CityscapesEvaluator
from ..evaluation.coco import ReducedCOCOEvaluator
from ..evaluation.inference import without_pasting
from ..modeling import backbones, light_detector, roi_heads  # noqa: F401, registers them
from ..modeling.box_head import use_fast_linear
from ..modeling.frozen import speed_up
from ..modeling.precision import train_in_bfloat16
from ..modeling.roi_align import use_fast_roi_align
from ..modeling.timm import build  # noqa: F401, registers them
from .checkpoint import GuardedCheckpointer
from .comparison import known_versions
from .evaluate import Evaluation, evaluate_each
from .hooks import EvaluationHook, SamePreciseBN, WandbWriter
from .optimizer import build_optimizer
from .outputs import finish
from .precision import with_precision
from .problems import record

logger = logging.getLogger(__name__)
FORWARD = 0.4  # time of an image in evaluation or precise BN, relative to its time in a training step


class Trainer(DefaultTrainer):
    """Trains and evaluates a detector; writes ``results.json`` and ``pictures/`` in addition to Detectron2's files.

    Attributes:
        weights: MODEL.WEIGHTS at the start of the run, before any resume.
        seconds: duration of the run up to the last resume.
        evaluation: the latest evaluation.
    """

    checkpointer: DetectionCheckpointer

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the config, scaled to the number of processes.
        """
        cfg = with_precision(cfg)
        self.evaluation = Evaluation()
        self.weights, self.seconds, self.begun = cfg.MODEL.WEIGHTS, 0.0, time.perf_counter()
        on_cpu = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu"
        super().__init__(_without_amp(cfg) if on_cpu else cfg)  # Detectron2's AMP needs CUDA
        self.cfg = cfg
        if on_cpu:
            train_in_bfloat16(self._trainer.model)

    def state_dict(self) -> dict[str, Any]:
        seconds = self.seconds + time.perf_counter() - self.begun
        batch = self.cfg.SOLVER.IMS_PER_BATCH
        own = {"weights": self.weights, "seconds": seconds, "seed": self.cfg.SEED, "batch": batch}
        own["versions"] = self.data_versions
        batches = self._trainer.data_loader.batch_sampler
        if isinstance(batches, Batches) and len(self.cfg.DATASETS.TRAIN) == 1:
            own["images"] = {self.cfg.DATASETS.TRAIN[0]: len(batches.records)}
        return {**super().state_dict(), **own, "config": self.cfg.dump(), "data": self.data_digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Detectron2's, which has no state of its loss scaling where a run in mixed precision began on a CPU.

        Raises:
            ValueError: if the run began with other training data.
        """
        super().load_state_dict(_with_scaler(state_dict, self._trainer))
        self.weights, self.seconds = state_dict["weights"], state_dict["seconds"]
        if state_dict.get("data") not in (None, self.data_digest):  # version 0.1 did not store it
            names = ", ".join(self.cfg.DATASETS.TRAIN)
            raise ValueError(
                f"{self.cfg.OUTPUT_DIR} is a run on other images or annotations than {names} has now: resume it on "
                "those that it began with, or start anew in another OUTPUT_DIR"
            )

    @functools.cached_property
    def data_versions(self) -> list[str | None]:
        """Of the training data, as :func:`known_versions` gives them."""
        return known_versions(self.cfg.DATASETS.TRAIN)

    @property
    def data_digest(self) -> str | None:
        """:attr:`Batches.digest` of the training data; None with Detectron2's own loaders."""
        batches = self._trainer.data_loader.batch_sampler
        return batches.digest if isinstance(batches, Batches) else None

    def run_step(self) -> None:
        """One iteration, with random numbers that depend on the seed, the process and the iteration only.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        seed_everything(self.cfg.SEED, comm.get_rank(), self.iter)
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {self._remedy()}") from None

    def _remedy(self) -> str:
        """The most frequent remedy for a loss that is not finite."""
        resnets, tuned = self.cfg.MODEL.RESNETS, self.cfg.MODEL.BACKBONE.FREEZE_AT < 5
        if tuned and resnets.NORM == "FrozenBN":
            return (
                "self-supervised backbones are often not stable when fine-tuned with frozen norms: set "
                "MODEL.RESNETS.NORM SyncBN (or BN), or lower SOLVER.BASE_LR"
            )
        return "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, and check the data with tools/check_dataset.py"

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        if cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler" and not cfg.MODEL.LOAD_PROPOSALS:
            return build_train_loader(cfg)
        logger.warning(f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN}: --resume will draw other images")
        loader = build_detection_train_loader(cfg, mapper=ImageMapper(cfg, is_train=True))
        if isinstance(loader, DataLoader):
            return Loader.of(loader)
        loader.dataset = Loader.of(loader.dataset)  # of Detectron2's AspectRatioGroupedDataset
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        mapper = ImageMapper(cfg, is_train=False)
        return Loader.of(build_detection_test_loader(cfg, dataset_name, mapper=mapper))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        try:
            model = super().build_model(without_sync(cfg) if cfg.MODEL.DEVICE == "cpu" else cfg)
        except KeyError as error:  # of a registry, with a table of all that is in it
            raise ValueError(f"the config names what is not there: {str(error.args[0]).splitlines()[0]}") from None
        if cfg.MODEL.DEVICE == "cpu":
            model = model.to(memory_format=torch.channels_last)  # the faster layout for convolutions there
            use_fast_roi_align(model)
            use_fast_linear(model)
        if cfg.MODEL.FAST_FROZEN.ENABLED:
            speed_up(getattr(model.backbone, "bottom_up", model.backbone), cfg.MODEL.FAST_FROZEN.COMPILE)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(dataset_name, cfg.OUTPUT_DIR, cfg.TEST.COCO_EVALUATOR)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """As Detectron2's; on a CPU masks are not pasted into images, unless other evaluators are given or built."""
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
            if all(isinstance(evaluator, ReducedCOCOEvaluator | CityscapesEvaluator) for evaluator in evaluators):
                model = without_pasting(model)
        return super().test(cfg, model, evaluators)

    def build_hooks(self) -> list[HookBase]:
        # DefaultTrainer has no method that builds the checkpointer, but its hooks use this attribute
        guarded = GuardedCheckpointer(self.checkpointer.model, self.cfg.OUTPUT_DIR)
        guarded.checkpointables = self.checkpointer.checkpointables
        self.checkpointer = guarded
        stop = StopOnSigterm(self.cfg.SOLVER.CHECKPOINT_PERIOD)
        timer, scheduler, *built = (self._ours(hook, stop) for hook in super().build_hooks())
        lines = [LinesFirst(hook._writers, hook._period) for hook in built if isinstance(hook, hooks.PeriodicWriter)]
        estimate = [TimeEstimate(self.cfg.MODEL.DEVICE, self._extras(built))] if comm.is_main_process() else []
        return [timer, scheduler, *lines, stop, *built, *estimate]

    def _ours(self, hook: HookBase, stop: StopOnSigterm) -> HookBase:
        """The hook, or our replacement of it."""
        if isinstance(hook, hooks.PreciseBN) and not hook._disabled:
            return SamePreciseBN(hook._period, hook._model, hook._data_loader, hook._num_iter, stop)
        if isinstance(hook, hooks.EvalHook):
            return EvaluationHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate, stop)
        return hook

    def _extras(self, built: Sequence[HookBase]) -> list[tuple[str, float]]:
        """``extras`` of :class:`TimeEstimate`: precise BN and evaluation until the end of the run."""
        test, batch = self.cfg.TEST, self.cfg.SOLVER.IMS_PER_BATCH
        times = times_due(self.start_iter, self.max_iter, test.EVAL_PERIOD)
        images = sum(len(DatasetCatalog.get(name)) for name in self.cfg.DATASETS.TEST)
        precise = test.PRECISE_BN.NUM_ITER if any(isinstance(hook, hooks.PreciseBN) for hook in built) else 0
        return [("precise BN", times * precise * FORWARD), ("evaluation", times * images / batch * FORWARD)]

    def _evaluate(self) -> dict[str, Any]:
        """The results, for the hook. A failed evaluation during training is a warning and does not end it."""
        self.evaluation = evaluate_each(self.cfg, self.model, self.test)
        self._last_eval_results = self.evaluation.results
        return self.evaluation.results

    def build_writers(self) -> list[EventWriter]:
        out = self.cfg.OUTPUT_DIR
        metrics = MetricsWriter(os.path.join(out, "metrics.json"))
        writers = [MetricPrinter(self.max_iter), metrics, TensorboardWriter(out)]
        return writers + ([WandbWriter(self.cfg)] if self.cfg.WANDB.PROJECT else [])

    def resume_or_load(self, resume: bool = True) -> None:
        """Load MODEL.WEIGHTS, or resume the run from its newest intact checkpoint.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the weights do not fill the backbone, or those of the checkpoint the whole detector.
        """
        if resume:
            self.checkpointer.required = ""
            self.checkpointer.resume()
            self.start_iter = self.iter + 1  # the checkpoint holds the last finished iteration
        elif self.cfg.MODEL.WEIGHTS == "random":
            logger.warning("MODEL.WEIGHTS random: the network starts from a random initialisation")
        else:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])

    def before_train(self) -> None:
        batches = getattr(self._trainer.data_loader, "batch_sampler", None)
        if isinstance(batches, Batches):
            batches.start = self.start_iter
        super().before_train()
        if self.start_iter >= self.max_iter and checkpoint_names(self.cfg.OUTPUT_DIR)[0] != "model_final.pth":
            self._end_last_iteration()

    def _end_last_iteration(self) -> None:
        """Precise BN and checkpoint of the last iteration, in whose precise BN the resumed run was stopped."""
        self.iter = self.max_iter - 1
        for hook in self._hooks:
            if isinstance(hook, hooks.PreciseBN | hooks.PeriodicCheckpointer):
                hook.after_step()

    def train(self) -> dict[str, Any]:
        """Train and evaluate; writes results.json and pictures.

        Returns:
            The results of the last evaluation, as :attr:`Evaluation.results`.

        Raises:
            UnfinishedRun: if the training is complete, but a part of evaluation, analysis or pictures has failed.
        """
        old = os.path.join(self.cfg.OUTPUT_DIR, "results.json")
        if comm.is_main_process() and os.path.exists(old):
            os.remove(old)  # of an earlier run; it must not pass for the result of this one if this one stops early
        problems: list[str] = []
        try:
            super().train()
        except Exception as error:
            if self.iter < self.max_iter or not comm.is_main_process():
                raise
            record(problems, "end of the training", error)  # raised by a hook after the last checkpoint
        done = self.evaluation
        if comm.is_main_process():
            trained = self.state_dict()
            trained["seconds"] -= done.seconds  # as in the last checkpoint, which is written before the evaluation
            state = {"iteration": self.max_iter - 1, "trainer": trained}
            # In several processes self.model is DistributedDataParallel; the checkpointer has the model inside it
            model, problems = self.checkpointer.model, [*done.problems, *problems]
            finish(self.cfg, model, done.results, state, done.seconds, problems)
        return done.results


def _with_scaler(state_dict, trainer):
    """The state of a run, whose loss scaling begins anew if it had none: in bfloat16 on a CPU no loss is scaled."""
    inner = state_dict["_trainer"]
    if not isinstance(trainer, AMPTrainer) or inner.get("grad_scaler"):
        return state_dict
    return {**state_dict, "_trainer": {**inner, "grad_scaler": trainer.grad_scaler.state_dict()}}


def _without_amp(cfg):
    """The config with SOLVER.AMP.ENABLED False, frozen."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED = False
    cfg.freeze()
    return cfg


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

"""The pretraining loop, on Detectron2's TrainerBase, hooks and EventStorage."""

import itertools
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import get_event_storage
from fvcore.common.config import CfgNode

from ..data.augment import SimCLRView, save_views
from ..data.device_augment import DeviceAugment
from ..data.loader import build_loader
from ..files.image_folders import list_images, names_digest
from ..files.images import UNREADABLE, read_image
from ..learning.build import build_learner
from ..learning.learner import LocalLearner
from ..processes.distributed import GradientReducer, broadcast_state
from ..processes.signals import Terminated
from ..processes.sigterm_hook import StopOnSigterm
from .checkpoint import AtomicCheckpointer
from .curves import LossPlot
from .divergence import refuse_divergence
from .estimate import TimeEstimate, times_due, warning_of_size
from .evaluation import EncoderEvaluator, Evaluation
from .loop import hooks_of_every_loop
from .optim import build_optimizer, build_scheduler
from .precision import with_precision
from .sequential import turns_of

logger = logging.getLogger(__name__)
# Measured with LoCo and a ResNet-50 at 224 pixels, in float32 (2 cores of an AMD EPYC)
STEP_SECONDS = 6.0  # for a million pixels of images, with both views
FEATURES_OF_IMAGE = 0.1  # time of an image's features, relative to its time in a step


class Trainer(TrainerBase):
    """Trains a :class:`LocalLearner` on a folder of images.

    With several processes BN is synchronised on GPUs. On the CPU, where torch has no SyncBatchNorm, every process
    normalises its own part of the batch. BN statistics in the checkpoint, and logged losses, are those of process 0.

    ``metrics.json`` and TensorBoard get ``loss_<top stage>`` of each unit that learns, their sum ``total_loss``,
    ``grad_norm``, ``lr``, ``images_per_second``, ``time`` and ``data_time`` (seconds), and ``eta_seconds``.

    Attributes:
        cfg: the config, with SOLVER.AMP.ENABLED True or False in place of auto.
    """

    def __init__(self, cfg: CfgNode, resume: bool = False, evaluator: EncoderEvaluator | None = None) -> None:
        """
        Args:
            cfg: the pretraining config.
            resume: resume from the newest checkpoint in OUTPUT_DIR.
            evaluator: evaluation of the encoder, as :func:`pretrain.readout.knn.knn_evaluator` returns it; None: none.

        Raises:
            FileNotFoundError: if there are no images, or nothing to resume.
            ValueError: if the config cannot work, or the checkpoint is damaged or of another run.
        """
        super().__init__()
        self.cfg = cfg = self._complete(cfg, resume)
        if cfg.KNN.TRAIN and evaluator is None:
            raise ValueError("KNN.TRAIN is set: pass knn_evaluator(cfg) of pretrain.readout.knn to the trainer")
        self.evaluator = evaluator
        solver = cfg.SOLVER
        if comm.get_world_size() > 1 and (cfg.MODEL.DEVICE == "cuda") != (torch.distributed.get_backend() == "nccl"):
            raise ValueError(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but several processes use all GPUs where there are any (cuda), "
                "and cpu where there are none"
            )
        side = cfg.INPUT.CROP_SIZE
        large = warning_of_size(
            cfg.MODEL.DEVICE, solver.IMS_PER_BATCH, side, side, STEP_SECONDS, "configs/pretrain/cpu/resnet18_loco.yaml"
        )
        if large and comm.is_main_process():
            logger.warning(large)
        self.images, self.num_images, digest = self._find_images()
        # Without units only BN's running averages change; 100 iterations make them independent of their start
        iterations = round(solver.EPOCHS * (self.num_images // solver.IMS_PER_BATCH))
        self.max_iter = max(1 if cfg.MODEL.UNITS else 100, iterations)
        self.learner = self._build_learner()
        self.optimizer = build_optimizer(solver, self.learner)
        self.turns = turns_of(cfg, self.learner, self.max_iter)
        self.scheduler = build_scheduler(solver, self.optimizer, self.max_iter, self.turns)
        self.checkpointer = self._build_checkpointer(digest)
        stages = zip(self.learner.encoder.stage_names, self.learner.encoder.stages, strict=True)
        self.parts = {name: list(stage.parameters()) for name, stage in stages}  # whose gradients are checked
        self.parts.update({f"{name}'s decoder": list(d.parameters()) for name, d in self.learner.decoders.items()})
        self.start_iter = self.checkpointer.resume() + 1 if resume else 0
        self._begin()
        self.unreadable: set[str] = set()
        self.mean, self.std = (
            torch.tensor(value, device=cfg.MODEL.DEVICE).view(3, 1, 1)
            for value in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )
        self.augment = DeviceAugment(cfg.INPUT) if cfg.INPUT.ON_DEVICE else None
        self.register_hooks(self._build_hooks())

    def _complete(self, cfg: CfgNode, resume: bool) -> CfgNode:
        """The config with values in place of what it leaves to the trainer."""
        return with_precision(cfg, resume)

    def _find_images(self) -> tuple[list[str], int, str]:
        """The training images, their number, and the digest of their names."""
        images = list_images(self.cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
        return images, len(images), names_digest(images, self.cfg.DATASETS.TRAIN)

    def _build_learner(self) -> LocalLearner:
        return build_learner(self.cfg)

    def _build_checkpointer(self, digest: str) -> AtomicCheckpointer:
        """
        Args:
            digest: of the images' names.
        """
        return AtomicCheckpointer(
            self.cfg,
            self.learner,
            self.num_images,
            digest,
            save_to_disk=comm.is_main_process(),
            optimizer=self.optimizer,
            scheduler=self.scheduler,
        )

    def _begin(self) -> None:
        """What depends on the iteration at which the run begins, and on the other processes."""
        broadcast_state(self.learner)
        self.group: torch.distributed.ProcessGroup | None = None  # of the processes that divide the batch: all
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()  # among them
        self.reduce_gradients = GradientReducer()
        self.loader = build_loader(self.cfg, self.images, self.start_iter, self.rank, self.world_size)
        self.stop = StopOnSigterm()

    def _build_hooks(self) -> list[HookBase]:
        solver = self.cfg.SOLVER
        extras: list[tuple[str, float]] = []
        chosen, writers = hooks_of_every_loop(
            self.cfg, self.optimizer, self.scheduler, self.checkpointer, self.stop, self.max_iter
        )
        if self.evaluator:
            period = max(1, round(self.evaluator.period * (self.num_images // solver.IMS_PER_BATCH)))
            chosen.append(Evaluation(period, self._evaluate, writers, self.stop))
            passes = times_due(self.start_iter, self.max_iter, period) * self.evaluator.images
            extras.append((self.evaluator.name, passes * FEATURES_OF_IMAGE / solver.IMS_PER_BATCH))
        chosen.append(TimeEstimate(self.cfg.MODEL.DEVICE, extras, self.turns))
        if comm.is_main_process():
            chosen.append(hooks.PeriodicWriter([LossPlot(self.cfg)], solver.CHECKPOINT_PERIOD))
        return chosen

    def _evaluate(self) -> dict[str, Any]:
        assert self.evaluator
        broadcast_state(self.learner.encoder)  # BN's averages may differ between processes; process 0 saves its own
        return self.evaluator.evaluate(self.learner.encoder)

    def train(self) -> None:
        """Train to the last iteration.

        On SIGTERM the iteration at hand is finished and saved. An evaluation is left at once, and --resume goes on
        after it.

        Raises:
            FloatingPointError: if a loss explodes, or a loss, a gradient or a weight to be saved is not finite.
            OSError: if too many images are unreadable, or a file cannot be written.
        """
        if self.start_iter >= self.max_iter:
            logger.info(f"{self.cfg.OUTPUT_DIR}: all {self.max_iter} iterations are done, there is nothing to resume")
            self.checkpointer.save_final(self.start_iter - 1)
            if comm.is_main_process():
                LossPlot(self.cfg).write()  # missing if the run was killed after its last checkpoint
            return
        self._log_plan()
        if comm.is_main_process() and self.start_iter == 0:
            view = SimCLRView(self.cfg.INPUT)  # the whole augmentation, also if the device does a part of it
            save_views(os.path.join(self.cfg.OUTPUT_DIR, "views.png"), self._sample_images(), view, self.cfg.SEED)
        self._open_loader()
        self.learner.train()
        try:
            super().train(self.start_iter, self.max_iter)
        except Terminated:
            pass

    def _open_loader(self) -> None:
        self.batches = iter(self.loader)

    def _log_plan(self) -> None:
        solver = self.cfg.SOLVER
        local = solver.IMS_PER_BATCH // self.world_size
        turns = " one after the other" if self.turns else ""
        logger.info(
            f"{self.cfg.MODEL.ENCODER}, units {self.cfg.MODEL.UNITS}{turns}, {self.num_images} images, {self.max_iter} "
            f"iterations, {comm.get_world_size()} processes; images per step: {solver.IMS_PER_BATCH}, "
            f"per process: {local}, per chunk: {min(solver.IMS_PER_CHUNK or local, local)}; peak learning rate: "
            f"{self.optimizer.param_groups[0]['initial_lr']:.6g} = {solver.BASE_LR} * {solver.IMS_PER_BATCH} / 256"
        )

    def _sample_images(self, count: int = 6) -> Iterator[np.ndarray]:
        for path in self.images[:: math.ceil(len(self.images) / count)]:
            try:
                yield read_image(path)
            except UNREADABLE:
                continue  # the training loop counts and logs it

    def run_step(self) -> None:
        """One iteration."""
        start = time.perf_counter()
        self._seed()
        views, data_time = self._next_views()
        unit = self._unit()
        with torch.autocast(views.device.type, torch.bfloat16, enabled=self.cfg.SOLVER.AMP.ENABLED):
            losses = self.learner.forward_backward(
                views, self.cfg.SOLVER.IMS_PER_CHUNK, self.reduce_gradients, self._prepare, only=unit
            )
        self.reduce_gradients.wait()
        grad_norm = refuse_divergence(losses, self.parts, self.cfg.SOLVER.MAX_LOSS, self.iter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        put_losses({name: loss.item() for name, loss in losses.items()}, grad_norm, self.iter, not self.turns)
        self._put_times(start, data_time)

    def _unit(self) -> str | None:
        """The unit that learns; None: all at once."""
        if self.turns is None:
            return None
        unit = self.turns.unit_at(self.iter)
        if self.turns.begins_at(self.iter):
            stop = self.turns.stop_of(self.iter)
            logger.info(f"the unit of {unit} learns alone, from iteration {self.iter + 1} to {stop}")
            broadcast_state(self.learner)  # frozen BN averages are those of process 0, as after --resume
        return unit

    def _seed(self) -> None:
        """Seed all random generators by (SEED, iteration, process), so that a resumed run has the same bits and no
        generator's state is stored."""
        seed_all_rng(int(np.random.SeedSequence([self.cfg.SEED, self.iter, self.rank]).generate_state(1)[0]))

    def _next_views(self) -> tuple[torch.Tensor, float]:
        """The views of a batch, (2B, 3, S, S) uint8, on the device, and how many seconds they took."""
        start = time.perf_counter()
        views, unreadable = next(self.batches)
        data_time = time.perf_counter() - start
        self._note_unreadable(unreadable)
        return views.to(self.cfg.MODEL.DEVICE, non_blocking=True), data_time  # keeps channels_last

    def _put_times(self, start: float, data_time: float) -> None:
        """Log how long the iteration that began at ``start`` has taken."""
        storage = get_event_storage()
        storage.put_scalar("data_time", data_time)
        storage.put_scalar("images_per_second", self.cfg.SOLVER.IMS_PER_BATCH / (time.perf_counter() - start))

    def _prepare(self, views: torch.Tensor) -> torch.Tensor:
        """The network's input, (2B, 3, S, S) float, of the uint8 views of a batch or chunk."""
        return ((self.augment(views) if self.augment else views) - self.mean) / self.std

    def _note_unreadable(self, paths: Iterable[str]) -> None:
        if self.world_size > 1 and (self.iter + 1) % self.cfg.SOLVER.LOG_PERIOD == 0:
            others = comm.all_gather(sorted(self.unreadable), self.group)
            paths = itertools.chain(paths, *others)  # what the others have met
        for path in set(paths) - self.unreadable:
            self.unreadable.add(path)
            share = len(self.unreadable) / self.num_images
            logger.warning(f"unreadable image left out ({len(self.unreadable)} so far, {share:.2%}): {path}")
            if share > self.cfg.DATASETS.MAX_UNREADABLE:
                raise OSError(
                    f"{len(self.unreadable)} of {self.num_images} images are unreadable, more than "
                    f"DATASETS.MAX_UNREADABLE {self.cfg.DATASETS.MAX_UNREADABLE}; the last: {path}"
                )


def put_losses(losses: Mapping[str, float], grad_norm: float, iteration: int, smooth: bool = True) -> None:
    """Log the losses of an iteration by the names of their units, their sum, and the norm of the gradient.

    Args:
        losses: name of each unit -> its loss.
        grad_norm: L2 norm of the whole gradient.
        iteration: of both.
        smooth: whether writers may smooth the sum and the norm over iterations: not if they are of another unit then.
    """
    storage = get_event_storage()
    for name, loss in losses.items():
        storage.put_scalar(f"loss_{name}", loss, cur_iter=iteration)
    if losses:
        storage.put_scalar("total_loss", sum(losses.values()), smoothing_hint=smooth, cur_iter=iteration)
    storage.put_scalar("grad_norm", grad_norm, smoothing_hint=smooth, cur_iter=iteration)

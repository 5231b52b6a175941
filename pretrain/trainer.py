"""The pretraining loop, on Detectron2's TrainerBase, hooks and EventStorage."""

import functools
import itertools
import logging
import math
import os
import time

import torch
from detectron2.engine import TrainerBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from .augment import save_views
from .checkpoint import AtomicCheckpointer
from .data import UNREADABLE, build_loader, list_images, read_image
from .distributed import average_gradients, broadcast_state
from .learner import build_learner
from .optim import build_optimizer, build_scheduler

logger = logging.getLogger(__name__)


class Trainer(TrainerBase):
    """Trains a :class:`LocalLearner` on a folder of images.

    With several processes BN is synchronised on GPUs; on the CPU, for which torch has no SyncBatchNorm, every process
    normalises its own part of the batch. Statistics in the checkpoint, and logged losses, are those of process 0.

    ``metrics.json`` and TensorBoard get ``loss_<top stage>`` of every unit, their sum ``total_loss``, ``lr``,
    ``images_per_second``, ``time``, ``data_time`` and ``eta_seconds``.
    """

    def __init__(self, cfg, resume=False):
        """
        Args:
            cfg: the config.
            resume: go on from the last checkpoint in OUTPUT_DIR.

        Raises:
            FileNotFoundError: if there are no images, or nothing to resume.
            ValueError: if the config cannot work.
        """
        super().__init__()
        self.cfg = cfg
        solver = cfg.SOLVER
        self.images = images = list_images(cfg.DATASETS.TRAIN)
        # without units nothing learns, but BN's averages must forget where they started
        self.max_iter = max(1 if cfg.MODEL.UNITS else 100, round(solver.EPOCHS * (len(images) // solver.IMS_PER_BATCH)))
        self.learner = build_learner(cfg)
        if comm.get_world_size() > 1 and cfg.MODEL.DEVICE != "cpu":  # torch has no SyncBatchNorm for the CPU
            self.learner = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.learner)
        self.optimizer = build_optimizer(solver, self.learner)
        self.scheduler = build_scheduler(solver, self.optimizer, self.max_iter)
        self.checkpointer = AtomicCheckpointer(
            cfg,
            self.learner,
            save_to_disk=comm.is_main_process(),
            optimizer=self.optimizer,
            scheduler=self.scheduler,
        )
        self.start_iter = self.checkpointer.resume() + 1 if resume else 0
        broadcast_state(self.learner)
        loader = build_loader(cfg, images, self.start_iter, comm.get_rank(), comm.get_world_size())
        self.view = loader.dataset.view
        self.batches = iter(loader)
        self.unreadable = set()
        self.mean, self.std = (
            torch.tensor(value, device=cfg.MODEL.DEVICE).view(3, 1, 1)
            for value in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )
        self.register_hooks(self._build_hooks())

    def _build_hooks(self):
        solver, out = self.cfg.SOLVER, self.cfg.OUTPUT_DIR
        chosen = [hooks.IterationTimer(), hooks.LRScheduler(self.optimizer, self.scheduler)]
        if comm.is_main_process():
            os.makedirs(out, exist_ok=True)
            metrics = JSONWriter(os.path.join(out, "metrics.json"))
            writers = [TerminalWriter(self.max_iter), metrics, TensorboardXWriter(out)]
            chosen.append(hooks.PeriodicCheckpointer(self.checkpointer, solver.CHECKPOINT_PERIOD))
            chosen.append(hooks.PeriodicWriter(writers, solver.LOG_PERIOD))
        return chosen

    def train(self):
        """Run to the end. Raises FloatingPointError on a loss that is not finite."""
        if comm.is_main_process() and self.start_iter == 0:
            save_views(os.path.join(self.cfg.OUTPUT_DIR, "views.png"), self._sample_images(), self.view, self.cfg.SEED)
        self.learner.train()
        super().train(self.start_iter, self.max_iter)

    def _sample_images(self, count=6):
        for path in self.images[:: math.ceil(len(self.images) / count)]:
            try:
                yield read_image(path)
            except UNREADABLE:
                continue  # the loader counts and names it

    def run_step(self):
        start = time.perf_counter()
        views, unreadable = next(self.batches)
        data_time = time.perf_counter() - start
        self._note_unreadable(unreadable)
        views = (views.to(self.cfg.MODEL.DEVICE, non_blocking=True) - self.mean) / self.std  # keeps channels_last
        with torch.autocast(views.device.type, torch.bfloat16, enabled=self.cfg.SOLVER.AMP.ENABLED):
            losses = self.learner.forward_backward(views)
        for name, loss in losses.items():
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"loss_{name} is {loss.item()} at iteration {self.iter}: start anew with a lower "
                    "SOLVER.BASE_LR or a longer warm-up; the checkpoints until then are kept"
                )
        average_gradients(self.learner.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()
        storage = get_event_storage()
        storage.put_scalars(**{f"loss_{name}": loss.item() for name, loss in losses.items()})
        if len(losses) > 0:
            storage.put_scalar("total_loss", sum(loss.item() for loss in losses.values()))
        storage.put_scalar("data_time", data_time)
        storage.put_scalar("images_per_second", self.cfg.SOLVER.IMS_PER_BATCH / (time.perf_counter() - start))

    def _note_unreadable(self, paths):
        if comm.get_world_size() > 1 and (self.iter + 1) % self.cfg.SOLVER.LOG_PERIOD == 0:
            paths = itertools.chain(paths, *comm.all_gather(sorted(self.unreadable)))  # what the others have met
        for path in set(paths) - self.unreadable:
            self.unreadable.add(path)
            share = len(self.unreadable) / len(self.images)
            logger.warning(f"unreadable image left out ({len(self.unreadable)} so far, {share:.2%}): {path}")
            if share > self.cfg.DATASETS.MAX_UNREADABLE:
                raise OSError(
                    f"{len(self.unreadable)} of {len(self.images)} images are unreadable, more than "
                    f"DATASETS.MAX_UNREADABLE {self.cfg.DATASETS.MAX_UNREADABLE}; the last: {path}"
                )


class TerminalWriter(EventWriter):
    """One line: ETA, iteration, losses, learning rate, images a second."""

    def __init__(self, max_iter):
        self._eta = functools.partial(CommonMetricPrinter._get_eta, CommonMetricPrinter(max_iter))
        self.max_iter = max_iter

    def write(self):
        storage = get_event_storage()
        if storage.iter >= self.max_iter or "lr" not in storage.histories():  # stopped before the first step's end
            return
        smooth = {name: history.median(20) for name, history in storage.histories().items()}
        losses = "  ".join(f"{name}: {value:.4f}" for name, value in smooth.items() if "loss" in name)
        logger.info(
            f"eta: {self._eta(storage) or 'unknown'}  iter: {storage.iter + 1}/{self.max_iter}  {losses}  "
            f"lr: {storage.history('lr').latest():.5g}  {smooth['images_per_second']:.1f} images/s  "
            f"data_time: {smooth['data_time']:.3f}"
        )

"""The pretraining loop, on Detectron2's TrainerBase, hooks and EventStorage."""

import itertools
import logging
import math
import os
import time

import numpy as np
import torch
from detectron2.engine import TrainerBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import get_event_storage

from ..data.augment import DeviceAugment, SimCLRView, save_views
from ..data.loader import build_loader
from ..files.images import UNREADABLE, list_images, names_digest, read_image
from ..learner import build_learner
from ..processes.distributed import GradientReducer, broadcast_state, worst_of_processes
from ..processes.signals import Terminated
from ..processes.sigterm import StopOnSigterm
from .checkpoint import AtomicCheckpointer
from .curves import LossPlot
from .estimate import TimeEstimate, times_due, warning_of_size
from .evaluation import Evaluation
from .loop import hooks_of_every_loop
from .optim import build_optimizer, build_scheduler
from .precision import with_precision

logger = logging.getLogger(__name__)
# Measured with LoCo and a ResNet-50 at 224 pixels, in float32 (2 cores of an AMD EPYC)
STEP_SECONDS = 6.0  # for a million pixels of images, both views of them
FEATURES_OF_IMAGE = 0.1  # time of an image's features, x that of an image in a step


class Trainer(TrainerBase):
    """Trains a :class:`LocalLearner` on a folder of images.

    With several processes BN is synchronised on GPUs; on the CPU, for which torch has no SyncBatchNorm, every process
    normalises its own part of the batch. Statistics in the checkpoint, and logged losses, are those of process 0.

    ``metrics.json`` and TensorBoard get ``loss_<top stage>`` of every unit, their sum ``total_loss``, ``grad_norm``,
    ``lr``, ``images_per_second``, ``time``, ``data_time`` and ``eta_seconds``.

    Attributes:
        cfg: the config, in which SOLVER.AMP.ENABLED auto has become True or False.
    """

    def __init__(self, cfg, resume=False, evaluator=None):
        """
        Args:
            cfg: the config.
            resume: go on from the last checkpoint in OUTPUT_DIR.
            evaluator: EncoderEvaluator, as of :func:`pretrain.readout.knn.knn_evaluator`; None: the encoder is not
                measured.

        Raises:
            FileNotFoundError: if there are no images, or nothing to resume.
            ValueError: if the config cannot work, or what is to be resumed is damaged or another run.
        """
        super().__init__()
        self.cfg = cfg = with_precision(cfg, resume)
        if cfg.KNN.TRAIN and evaluator is None:
            raise ValueError("KNN.TRAIN asks for kNN: hand knn_evaluator(cfg) of pretrain.readout.knn to the trainer")
        self.evaluator = evaluator
        solver = cfg.SOLVER
        if comm.get_world_size() > 1 and (cfg.MODEL.DEVICE == "cuda") != (torch.distributed.get_backend() == "nccl"):
            raise ValueError(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but several processes use all GPUs where there are any (cuda), "
                "and cpu where there are none"
            )
        side = cfg.INPUT.CROP_SIZE
        large = warning_of_size(
            cfg.MODEL.DEVICE, solver.IMS_PER_BATCH, side, side, STEP_SECONDS, "configs/pretrain/cpu_loco.yaml"
        )
        if large and comm.is_main_process():
            logger.warning(large)
        self.images = images = list_images(cfg.DATASETS.TRAIN)
        # without units nothing learns, but BN's averages must forget where they started
        self.max_iter = max(1 if cfg.MODEL.UNITS else 100, round(solver.EPOCHS * (len(images) // solver.IMS_PER_BATCH)))
        self.learner = build_learner(cfg)
        self.optimizer = build_optimizer(solver, self.learner)
        self.scheduler = build_scheduler(solver, self.optimizer, self.max_iter)
        self.checkpointer = AtomicCheckpointer(
            cfg,
            self.learner,
            len(images),
            names_digest(images, cfg.DATASETS.TRAIN),
            save_to_disk=comm.is_main_process(),
            optimizer=self.optimizer,
            scheduler=self.scheduler,
        )
        stages = zip(self.learner.encoder.stage_names, self.learner.encoder.stages, strict=True)
        self.parts = {name: list(stage.parameters()) for name, stage in stages}  # whose gradients are looked at
        self.parts.update({f"{name}'s decoder": list(d.parameters()) for name, d in self.learner.decoders.items()})
        self.start_iter = self.checkpointer.resume() + 1 if resume else 0
        broadcast_state(self.learner)
        self.reduce_gradients = GradientReducer()
        self.loader = build_loader(cfg, images, self.start_iter, comm.get_rank(), comm.get_world_size())
        self.unreadable = set()
        self.mean, self.std = (
            torch.tensor(value, device=cfg.MODEL.DEVICE).view(3, 1, 1)
            for value in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )
        self.augment = DeviceAugment(cfg.INPUT) if cfg.INPUT.ON_DEVICE else None
        self.stop = StopOnSigterm()
        self.register_hooks(self._build_hooks())

    def _build_hooks(self):
        solver, extras = self.cfg.SOLVER, []
        chosen, writers = hooks_of_every_loop(
            self.cfg, self.optimizer, self.scheduler, self.checkpointer, self.stop, self.max_iter
        )
        if self.evaluator:
            period = max(1, round(self.evaluator.period * (len(self.images) // solver.IMS_PER_BATCH)))
            chosen.append(Evaluation(period, self._evaluate, writers, self.stop))
            passes = times_due(self.start_iter, self.max_iter, period) * self.evaluator.images
            extras.append((self.evaluator.name, passes * FEATURES_OF_IMAGE / solver.IMS_PER_BATCH))
        chosen.append(TimeEstimate(self.cfg.MODEL.DEVICE, extras))
        if comm.is_main_process():
            chosen.append(hooks.PeriodicWriter([LossPlot(self.cfg)], solver.CHECKPOINT_PERIOD))
        return chosen

    def _evaluate(self):
        broadcast_state(self.learner.encoder)  # BN's averages may differ between processes: those that are saved count
        return self.evaluator.evaluate(self.learner.encoder)

    def train(self):
        """Run to the end; or, on SIGTERM, to the end of the iteration, which gets a checkpoint. The kNN evaluation is
        left at once, and --resume goes on behind it.

        Raises:
            FloatingPointError: when a loss explodes, or a loss, a gradient or a weight to be saved is not finite.
            OSError: when too many images cannot be read, or a file cannot be written.
        """
        if self.start_iter >= self.max_iter:
            logger.info(f"{self.cfg.OUTPUT_DIR}: all {self.max_iter} iterations are done, there is nothing to resume")
            self.checkpointer.save_final(self.start_iter - 1)
            if comm.is_main_process():
                LossPlot(self.cfg).write()  # which a process lacks that was killed after its last checkpoint
            return
        self._log_plan()
        if comm.is_main_process() and self.start_iter == 0:
            view = SimCLRView(self.cfg.INPUT)  # the whole augmentation, also when the device does a part of it
            save_views(os.path.join(self.cfg.OUTPUT_DIR, "views.png"), self._sample_images(), view, self.cfg.SEED)
        self.batches = iter(self.loader)
        self.learner.train()
        try:
            super().train(self.start_iter, self.max_iter)
        except Terminated:
            pass

    def _log_plan(self):
        solver, processes = self.cfg.SOLVER, comm.get_world_size()
        local = solver.IMS_PER_BATCH // processes
        logger.info(
            f"{self.cfg.MODEL.ENCODER}, units {self.cfg.MODEL.UNITS}, {len(self.images)} images, {self.max_iter} "
            f"iterations, {processes} processes; images per step: {solver.IMS_PER_BATCH}, per process: {local}, "
            f"per chunk: {min(solver.IMS_PER_CHUNK or local, local)}; peak learning rate: "
            f"{self.optimizer.param_groups[0]['initial_lr']:.6g} = {solver.BASE_LR} * {solver.IMS_PER_BATCH} / 256"
        )

    def _sample_images(self, count=6):
        for path in self.images[:: math.ceil(len(self.images) / count)]:
            try:
                yield read_image(path)
            except UNREADABLE:
                continue  # the loader counts and names it

    def run_step(self):
        """One iteration. Whatever draws random numbers in it gets them from generators that are seeded here by (SEED,
        iteration, process), so that a resumed run goes on with the same bits, and no generator's state is stored."""
        start = time.perf_counter()
        seed_all_rng(int(np.random.SeedSequence([self.cfg.SEED, self.iter, comm.get_rank()]).generate_state(1)[0]))
        views, unreadable = next(self.batches)
        data_time = time.perf_counter() - start
        self._note_unreadable(unreadable)
        views = views.to(self.cfg.MODEL.DEVICE, non_blocking=True)  # keeps channels_last, as what follows
        with torch.autocast(views.device.type, torch.bfloat16, enabled=self.cfg.SOLVER.AMP.ENABLED):
            losses = self.learner.forward_backward(
                views, self.cfg.SOLVER.IMS_PER_CHUNK, self.reduce_gradients, self._prepare
            )
        self.reduce_gradients.wait()
        grad_norm = self._check(losses)
        self.optimizer.step()
        self.optimizer.zero_grad()
        storage = get_event_storage()
        storage.put_scalars(**{f"loss_{name}": loss.item() for name, loss in losses.items()})
        if len(losses) > 0:
            storage.put_scalar("total_loss", sum(loss.item() for loss in losses.values()))
        storage.put_scalar("grad_norm", grad_norm)
        storage.put_scalar("data_time", data_time)
        storage.put_scalar("images_per_second", self.cfg.SOLVER.IMS_PER_BATCH / (time.perf_counter() - start))

    def _prepare(self, views):
        """uint8 views to the network's input, (2B, 3, S, S); of a large batch one chunk at a time."""
        return ((self.augment(views) if self.augment else views) - self.mean) / self.std

    def _check(self, losses):
        """Refuse a loss that has exploded or a gradient that is not finite, before the optimiser's step, so that no
        checkpoint holds what comes of it. All processes decide alike.

        Returns:
            float: the norm of the gradient.
        """
        grads = {part: [p.grad for p in params if p.grad is not None] for part, params in self.parts.items()}
        norms = {part: torch.nn.utils.get_total_norm(g) for part, g in grads.items() if g}
        worst = worst_of_processes([*losses.values(), *norms.values()])
        norms = dict(zip(norms, worst[len(losses) :], strict=True))
        limit = self.cfg.SOLVER.MAX_LOSS
        wrong = [
            f"loss_{name} is {'not finite' if math.isinf(loss) else f'{loss:.4g}, above SOLVER.MAX_LOSS {limit:g}'}"
            for name, loss in zip(losses, worst, strict=False)
            if math.isinf(loss) or loss > limit
        ] or [f"the gradient of {part} is not finite" for part, norm in norms.items() if math.isinf(norm)]
        if wrong:
            raise FloatingPointError(
                f"{', '.join(wrong)} at iteration {self.iter}: start anew with a lower SOLVER.BASE_LR or a longer "
                "warm-up; the checkpoints until then are kept"
            )
        return math.hypot(*norms.values())

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

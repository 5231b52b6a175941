"""Pretraining on several devices without global synchronisation: each trains a run of consecutive stages."""

import logging
import math
import time
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from ...data.loader import build_loader, refuse_batch
from ...encoders import build_encoder
from ...learning.learner import LocalLearner
from ...processes.distributed import GradientReducer, broadcast_state
from ...processes.peers import Peers
from ...processes.stage_mesh import StageMesh
from ..checkpoint import AtomicCheckpointer
from ..divergence import refuse_divergence
from ..trainer import Trainer, put_losses
from .build import build_share
from .checkpoint import StageCheckpointer
from .figures import Figures
from .memory import memory_line, resident
from .ports import NetworkPorts
from .split import refuse_split, with_split
from .stop import StopTogether
from .trace import FIRST, Trace

logger = logging.getLogger(__name__)


class StageTrainer(Trainer):
    """A :class:`Trainer` whose process has some of the stages, with their decoders, losses and optimiser.

    The lowest stages have the loader. A step waits for messages of its neighbours only
    (pretrain/learning/stage_parallel/share.py). Losses go to process 0, which waits for them when it writes a line.
    Checkpoints, and evaluations, bring all processes to the same iteration.

    Attributes:
        mesh: the processes.
        share: the stages of this process.
    """

    def _complete(self, cfg: CfgNode, resume: bool) -> CfgNode:
        refuse_options(cfg)
        refuse_split(cfg)
        self.mesh = StageMesh.of(cfg.MODEL.STAGE_PARALLEL.DEVICES, cfg.MODEL.DEVICE)
        return with_split(super()._complete(cfg, resume), resume, self.mesh)

    def _find_images(self) -> tuple[list[str], int, str]:
        """Only the lowest stages need the images. An error of process 0 is that of all."""
        images: list[str] = []
        found: tuple[int, str] | Exception = 0, ""
        if self.mesh.stage == 0:
            try:
                images, count, digest = super()._find_images()
                found = count, digest
            except (OSError, ValueError) as error:
                found = error
        of_first: tuple[int, str] | Exception = comm.all_gather(found)[0]
        if isinstance(of_first, Exception):
            raise of_first
        refuse_batch(self.cfg.SOLVER.IMS_PER_BATCH, of_first[0], self.mesh.copies)
        return images, *of_first

    def _build_learner(self) -> LocalLearner:
        """The learner, of which only this process's part has memory."""
        self.share = build_share(self.cfg, self.mesh)
        return self.share.learner

    def _build_checkpointer(self, digest: str) -> AtomicCheckpointer:
        return StageCheckpointer(
            self.cfg,
            self.learner,
            self.mesh,
            self._drain,
            self.num_images,
            digest,
            save_to_disk=comm.is_main_process(),
            optimizer=self.optimizer,
            scheduler=self.scheduler,
        )

    def _begin(self) -> None:
        mesh, plan = self.mesh, self.learner.plan
        self.group, self.rank, self.world_size = mesh.data_objects, mesh.copy, mesh.copies
        self.reduce_gradients = GradientReducer(mesh.data)
        if mesh.stage == 0:
            self.loader = build_loader(self.cfg, self.images, self.start_iter, mesh.copy, mesh.copies)
        names = [", ".join(parts) for parts in self.cfg.MODEL.STAGE_PARALLEL.SPLIT]
        self.peers = Peers([f"process {r} ({names[r // mesh.copies]})" for r in range(comm.get_world_size())])
        self.units = [[segment.top_of for segment in device if segment.top_of] for device in plan.devices]
        device = torch.device(self.cfg.MODEL.DEVICE)
        self.ports = NetworkPorts(mesh, device, self.peers.lost, self.share.gradients)
        self.figures = Figures(mesh, [len(units) + 3 for units in self.units], self.peers.lost)
        self.stop = StopTogether(mesh, self.ports)
        steps = min(self.cfg.MODEL.STAGE_PARALLEL.TRACE, self.max_iter - self.start_iter - FIRST)
        self.trace = Trace(mesh, self.start_iter, steps, self.cfg.MODEL.DEVICE)
        lines = comm.gather(memory_line(self.peers.names[comm.get_rank()], self.learner, self.optimizer))
        for line in lines:
            logger.info(line)

    def _evaluate(self) -> dict[str, Any]:
        """The evaluation divides its images among all processes: each gets a whole encoder for it."""
        assert self.evaluator
        self._log_figures()
        model = self.checkpointer.whole_model()
        encoder = build_encoder(self.cfg.MODEL.ENCODER)
        if model is not None:
            encoder.load_state_dict({k[8:]: v for k, v in model.items() if k.startswith("encoder.")})
        encoder = encoder.to(self.cfg.MODEL.DEVICE).to(memory_format=torch.channels_last)
        broadcast_state(encoder)
        return self.evaluator.evaluate(encoder)

    def train(self) -> None:
        """As :meth:`Trainer.train`.

        Raises:
            PeerLostError: if another process has ended or failed.
        """
        comm.synchronize()  # a process that is not here yet does not count, and must not be taken for dead
        with self.peers.watched():
            super().train()
            self.ports.flush()
            self.figures.flush()
            comm.synchronize()

    def _open_loader(self) -> None:
        if self.mesh.stage == 0:
            super()._open_loader()

    def run_step(self) -> None:
        """One iteration of this process's stages."""
        start, self.trace.iteration = time.perf_counter(), self.iter
        self._seed()
        views, data_time = None, 0.0
        if self.share.is_lowest:
            self.ports.is_last = self.iter + 1 == self.max_iter or self.stop.is_wanted()
            views, data_time = self._next_views()
        with torch.autocast(torch.device(self.cfg.MODEL.DEVICE).type, torch.bfloat16, self.cfg.SOLVER.AMP.ENABLED):
            losses = self.share.forward_backward(
                self.ports, views, self.reduce_gradients, self._prepare, self.trace.watch
            )
        with self.trace.watch("update", ""):
            self.reduce_gradients.wait()
            grad_norm = refuse_divergence(losses, self.parts, self.cfg.SOLVER.MAX_LOSS, self.iter, self.mesh.data)
            self.optimizer.step()
            self.optimizer.zero_grad()
        of_units = [losses[unit].item() for unit in self.units[self.mesh.stage]]
        self.figures.put(self.iter, [*of_units, grad_norm, resident(self.cfg.MODEL.DEVICE), self.ports.bytes])
        if (self.iter + 1) % self.cfg.SOLVER.LOG_PERIOD == 0 or self.ports.is_last:
            self._log_figures()
        self._put_times(start, data_time)
        self.trace.end_step(self.cfg.OUTPUT_DIR, [", ".join(parts) for parts in self.cfg.MODEL.STAGE_PARALLEL.SPLIT])

    def _log_figures(self) -> None:
        """On process 0: wait for the figures of all stages until this iteration, and log them."""
        for iteration, figures in self.figures.collect():
            losses: dict[str, float] = {}
            for units, values in zip(self.units, figures, strict=True):
                losses.update(zip(units, values, strict=False))
            put_losses(losses, math.hypot(*(values[-3] for values in figures)), iteration)
            if iteration == self.start_iter + 1:  # the first one has fewer messages, and no optimiser's state
                for stage, (*_, memory, sent) in enumerate(figures):
                    logger.info(
                        f"{self.peers.names[stage * self.mesh.copies]}: {memory / 1e6:.0f} MB of memory at most, "
                        f"{sent / 2e6:.3g} MB sent a step"
                    )

    def _drain(self) -> None:
        """With late updates: wait for what is on its way."""
        self.share.drain(self.ports, self.reduce_gradients)
        self.reduce_gradients.wait()


def refuse_options(cfg: CfgNode) -> None:
    """Refuse options that do not go together with MODEL.STAGE_PARALLEL.

    Raises:
        ValueError: saying which, and why.
    """
    if cfg.SOLVER.IMS_PER_CHUNK:
        raise ValueError(
            "SOLVER.IMS_PER_CHUNK runs every stage twice, so that all activations would be sent twice: set it to 0, "
            "or MODEL.STAGE_PARALLEL.DEVICES to 1"
        )
    if cfg.SOLVER.SEQUENTIAL:
        raise ValueError(
            "SOLVER.SEQUENTIAL trains one unit at a time, so that one device would work at a time: set it to False, or "
            "MODEL.STAGE_PARALLEL.DEVICES to 1"
        )
    if cfg.MODEL.STAGE_PARALLEL.LATE and cfg.MODEL.COMPILE:
        raise ValueError(
            "MODEL.STAGE_PARALLEL.LATE runs stages with copies of their weights, which MODEL.COMPILE would compile "
            "anew: choose one of them"
        )


def trainer_of(cfg: CfgNode) -> type[Trainer]:
    """The class of a config's trainer."""
    return StageTrainer if cfg.MODEL.STAGE_PARALLEL.DEVICES > 1 else Trainer

"""What pretraining and linear readout have around their steps: learning rate, writers, checkpoints, SIGTERM."""

import functools
import logging
import os

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, get_event_storage
from fvcore.common.checkpoint import Checkpointer
from torch.optim import Optimizer

from ..processes.sigterm_hook import StopOnSigterm
from .writers import MetricsWriter, TensorboardWriter

logger = logging.getLogger(__name__)


def hooks_of_every_loop(
    cfg: CfgNode,
    optimizer: Optimizer,
    scheduler: LRMultiplier,
    checkpointer: Checkpointer,
    stop: StopOnSigterm,
    max_iter: int,
) -> tuple[list[HookBase], list[EventWriter]]:
    """The first hooks of a training, in the order in which they have to act.

    Args:
        cfg: with OUTPUT_DIR, SOLVER.LOG_PERIOD and SOLVER.CHECKPOINT_PERIOD.
        optimizer, scheduler, checkpointer: of the training.
        stop: its hook that ends it on SIGTERM.
        max_iter: iterations in the run.

    Returns:
        tuple: the hooks, and the writers of metrics.json and TensorBoard, none in other processes than the first.
    """
    chosen, writers = [hooks.IterationTimer(), WeightsLRScheduler(optimizer, scheduler)], []
    if comm.is_main_process():
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        writers = [MetricsWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json")), TensorboardWriter(cfg.OUTPUT_DIR)]
        # Before any checkpoint: a run that goes on from it must not lack the line
        chosen.append(hooks.PeriodicWriter([TerminalWriter(max_iter), *writers], cfg.SOLVER.LOG_PERIOD))
    chosen.append(stop)  # before all that takes time: after SIGTERM there may be seconds left
    if comm.is_main_process():
        chosen.append(hooks.PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
    return chosen, writers


class WeightsLRScheduler(hooks.LRScheduler):
    """Logs the learning rate of the weights; Detectron2 would take the group of most tensors, BN and biases."""

    def before_train(self):
        super().before_train()
        self._best_param_group_id = 0


class TerminalWriter(EventWriter):
    """One line: ETA, iteration, losses, learning rate, images a second."""

    def __init__(self, max_iter):
        self._eta = functools.partial(CommonMetricPrinter._get_eta, CommonMetricPrinter(max_iter))
        self.max_iter, self.written = max_iter, None

    def write(self):
        storage = get_event_storage()
        if storage.iter == self.written or storage.latest().get("lr", (0, -1))[1] != storage.iter:
            return  # it is reported already, or the step came to nothing
        self.written = storage.iter
        smooth = {name: history.median(20) for name, history in storage.histories().items()}
        losses = "  ".join(f"{name}: {value:.4f}" for name, value in smooth.items() if "loss" in name)
        logger.info(
            f"eta: {self._eta(storage) or 'unknown'}  iter: {storage.iter + 1}/{self.max_iter}  {losses}  "
            f"lr: {storage.history('lr').latest():.5g}  {smooth['images_per_second']:.1f} images/s  "
            f"data_time: {smooth['data_time']:.3f}"
        )

"""What pretraining and linear readout have around their steps: learning rate, writers, checkpoints, SIGTERM."""

import os

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.common.checkpoint import Checkpointer
from torch.optim import Optimizer

from ..processes.sigterm_hook import StopOnSigterm
from .optim import WeightsLRScheduler
from .writers import MetricsWriter, TensorboardWriter, TerminalWriter


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
    chosen: list[HookBase] = [hooks.IterationTimer(), WeightsLRScheduler(optimizer, scheduler)]
    writers: list[EventWriter] = []
    if comm.is_main_process():
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        writers = [MetricsWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json")), TensorboardWriter(cfg.OUTPUT_DIR)]
        # Before any checkpoint: a run that goes on from it must not lack the line
        chosen.append(hooks.PeriodicWriter([TerminalWriter(max_iter), *writers], cfg.SOLVER.LOG_PERIOD))
    chosen.append(stop)  # before all that takes time: after SIGTERM there may be seconds left
    if comm.is_main_process() or stop.saves_everywhere:
        chosen.append(hooks.PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
    return chosen, writers

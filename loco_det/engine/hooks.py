"""Hooks of a detector's training: evaluation, precise BN in several processes, Weights & Biases."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from pretrain.processes.sigterm_hook import StopOnSigterm

from ..data.loader import seed_everything


class EvaluationHook(hooks.EvalHook):
    """Detectron2's EvalHook that SIGTERM ends at once.

    A training that fails in its last iteration is not evaluated, because the evaluation would write a checkpoint as if
    that iteration were done.
    """

    def __init__(self, period: int, function: Callable[[], dict[str, Any]], stop: StopOnSigterm) -> None:
        """
        Args:
            period: iterations between two evaluations; 0: only after the training.
            function: evaluates, and returns the results.
            stop: the trainer's.
        """
        super().__init__(period, function)
        self.stop = stop

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # all iterations are done
            super().after_train()

    def _do_eval(self) -> None:
        if not self.stop.ended:  # Detectron2 calls after_train also after an exception
            with self.stop.at_once():
                super()._do_eval()


class SamePreciseBN(hooks.PreciseBN):
    """Detectron2's PreciseBN on the batches that come next, with the same statistics in all processes.

    In Detectron2's every process computes statistics of its own images and evaluates its part of the test set with
    them, but only those of process 0 are saved. SIGTERM ends this hook at once.
    """

    def __init__(
        self, period: int, model: nn.Module, data_loader: Iterable[list[dict]], num_iter: int, stop: StopOnSigterm
    ) -> None:
        """
        Args:
            period: iterations between two updates of the statistics; 0: only after the last iteration.
            model: the detector.
            data_loader: training batches of dataset dicts.
            num_iter: batches of an update.
            stop: the trainer's.
        """
        super().__init__(period, model, data_loader, num_iter)
        self.stop = stop

    def update_stats(self) -> None:
        if not self._disabled:
            with self.stop.at_once():
                self._update()

    def _update(self) -> None:
        batches: Any = getattr(self._data_loader, "batch_sampler", None)  # not in Detectron2's own loaders
        if hasattr(batches, "start"):
            batches.start = self.trainer.iter + 1
            # The heads sample proposals at random; a run that is resumed here has drawn other numbers before
            seed_everything(batches.seed, batches.rank, self.trainer.iter, 1)
        self._data_iter = None
        counters = [(norm, norm.num_batches_tracked.clone()) for norm in get_bn_modules(self._model)]
        super().update_stats()
        for norm, count in counters:  # an update must not count: a resumed run may repeat it
            norm.num_batches_tracked = count
        if comm.get_world_size() > 1:
            for norm in get_bn_modules(self._model):
                mean = _mean_of_processes(norm.running_mean)
                # The variance over all images is the mean of the variances plus the variance of the means
                norm.running_var = _mean_of_processes(norm.running_var + (norm.running_mean - mean) ** 2)
                norm.running_mean = mean


def _mean_of_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of ``tensor`` over all processes, as a new tensor."""
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total / comm.get_world_size()


class WandbWriter(EventWriter):
    """Writes scalars to Weights & Biases (``pip install wandb``), one step for each iteration that has any.

    A resumed run is a new run there.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the config; WANDB.PROJECT is the project.

        Raises:
            ValueError: if wandb is not installed.
        """
        try:
            import wandb
        except ImportError:
            raise ValueError("WANDB.PROJECT is set, but wandb is not installed: pip install wandb") from None
        self._run = wandb.init(project=cfg.WANDB.PROJECT, dir=cfg.OUTPUT_DIR, config=dict(cfg))
        self._written = -1

    def write(self) -> None:
        new: dict[int, dict[str, float]] = {}
        last = self._written
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration > self._written:
                new.setdefault(iteration, {})[name] = value
                last = max(last, iteration)
        for iteration in sorted(new):
            self._run.log(new[iteration], step=iteration)
        self._written = last

    def close(self) -> None:
        self._run.finish()

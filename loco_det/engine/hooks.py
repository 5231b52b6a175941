"""What happens around the iterations of a detector's training: evaluation, precise BN in several processes, wandb."""

import torch
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from fvcore.nn.precise_bn import get_bn_modules

from ..data.loader import seed_everything


class EvaluationHook(hooks.EvalHook):
    """Detectron2's, but SIGTERM ends it at once, and a training that fails in its last iteration is not evaluated: it
    would get a checkpoint as if that iteration were done."""

    def __init__(self, period, function, stop):
        """
        Args:
            period, function: as Detectron2's.
            stop: the trainer's :class:`StopOnSigterm`.
        """
        super().__init__(period, function)
        self.stop = stop

    def after_train(self):
        if self.trainer.iter >= self.trainer.max_iter:  # only when all iterations have come to their end
            super().after_train()

    def _do_eval(self):
        if not self.stop.ended:  # hooks have their turn after the training, however it has ended
            with self.stop.at_once():
                super()._do_eval()


class SamePreciseBN(hooks.PreciseBN):
    """Detectron2's, but each time from the batches that come next, with the same statistics in all processes, and ended
    at once by SIGTERM.

    Without SyncBN every process sees its own images and evaluates its own part of the test set with the statistics of
    these, while only those of the first one are saved.
    """

    def __init__(self, period, model, data_loader, num_iter, stop):
        """
        Args:
            period, model, data_loader, num_iter: as Detectron2's.
            stop: the trainer's :class:`StopOnSigterm`.
        """
        super().__init__(period, model, data_loader, num_iter)
        self.stop = stop

    def update_stats(self):
        if not self._disabled:
            with self.stop.at_once():
                self._update()

    def _update(self):
        batches = getattr(self._data_loader, "batch_sampler", None)  # Detectron2's own loaders have none
        if hasattr(batches, "start"):
            batches.start = self.trainer.iter + 1
            # Heads sample their proposals: a run that is resumed for this has drawn other random numbers before
            seed_everything(batches.seed, batches.rank, self.trainer.iter, 1)
        self._data_iter = None
        counters = [(norm, norm.num_batches_tracked.clone()) for norm in get_bn_modules(self._model)]
        super().update_stats()
        for norm, count in counters:  # of what it has learned from: done twice, when a run is resumed, it is the same
            norm.num_batches_tracked = count
        if comm.get_world_size() > 1:
            for norm in get_bn_modules(self._model):
                mean = _mean_of_processes(norm.running_mean)
                # The variance of all images is the mean of the variances and the variance of the means
                norm.running_var = _mean_of_processes(norm.running_var + (norm.running_mean - mean) ** 2)
                norm.running_mean = mean


def _mean_of_processes(tensor):
    """A new tensor with the mean of all processes' ``tensor``."""
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total / comm.get_world_size()


class WandbWriter(EventWriter):
    """Scalars to Weights & Biases (``pip install wandb``), one step for each iteration that has any.

    A resumed run is a new one there.
    """

    def __init__(self, cfg):
        """
        Raises:
            ValueError: if wandb is not installed.
        """
        try:
            import wandb
        except ImportError:
            raise ValueError("WANDB.PROJECT is set, but wandb is not installed: pip install wandb") from None
        self._run = wandb.init(project=cfg.WANDB.PROJECT, dir=cfg.OUTPUT_DIR, config=dict(cfg))
        self._written = -1

    def write(self):
        new, last = {}, self._written
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration > self._written:
                new.setdefault(iteration, {})[name] = value
                last = max(last, iteration)
        for iteration in sorted(new):
            self._run.log(new[iteration], step=iteration)
        self._written = last

    def close(self):
        self._run.finish()

"""What happens around the iterations of a detector's training: SIGTERM, precise BN in several processes, wandb."""

import logging
import signal

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from fvcore.nn.precise_bn import get_bn_modules

logger = logging.getLogger(__name__)


class StopOnSigterm(HookBase):
    """SIGTERM (preemption) ends the run after the iteration at hand, with a checkpoint and exit code 0."""

    previous = None

    def before_train(self):
        self.asked = False
        self.previous = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self.asked = True

    def after_step(self):
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # model_final is written: the evaluation may be ended
            self.after_train()
            return
        if not _any_process(self.asked):
            return
        if comm.is_main_process():
            self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
        logger.info(f"SIGTERM: checkpoint written after iteration {self.trainer.iter}; go on with --resume")
        comm.synchronize()
        raise SystemExit(0)

    def after_train(self):
        if self.previous is not None:  # another hook may have stopped the run before this one's turn
            signal.signal(signal.SIGTERM, self.previous)
            self.previous = None


def _any_process(flag):
    """Whether ``flag`` is set in any process; all have to ask at the same moment."""
    if comm.get_world_size() == 1:
        return flag
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(total)
    return total.item() > 0


class SamePreciseBN(hooks.PreciseBN):
    """Detectron2's, but each time from the batches that come next, and with the same statistics in all processes.

    Without SyncBN every process sees its own images and evaluates its own part of the test set with the statistics of
    these, while only those of the first one are saved.
    """

    def update_stats(self):
        if self._disabled:
            return
        batches = getattr(self._data_loader, "batch_sampler", None)  # Detectron2's own loaders have none
        if hasattr(batches, "start"):
            batches.start = self.trainer.iter + 1
        self._data_iter = None
        super().update_stats()
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

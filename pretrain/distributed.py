"""Agreement between processes: the same parameters at the start, mean gradients in each step, a common end."""

import logging
import os
import signal
import threading

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def broadcast_state(model):
    """Give every process the parameters and buffers of process 0."""
    if comm.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


class GradientReducer:
    """Averages gradients over the processes, those of one unit while the next unit still runs forward.

    DistributedDataParallel reduces when ONE backward pass reaches a parameter; here several partial ones do.
    """

    def __init__(self):
        self._pending = []  # of each reduction: its handle, the sum that is under way, the gradients it is made of

    def __call__(self, parameters):
        """Start to reduce the gradients of some parameters; they must not be touched before :meth:`wait`.

        Args:
            parameters: iterable of parameters, the same in every process; those without a gradient are left out.
        """
        if comm.get_world_size() == 1:
            return
        by_dtype = {}
        for grad in (p.grad for p in parameters if p.grad is not None):
            by_dtype.setdefault(grad.dtype, []).append(grad)
        for grads in by_dtype.values():
            total = torch.cat([grad.flatten() for grad in grads])
            self._pending.append((dist.all_reduce(total, async_op=True), total, grads))

    def wait(self):
        """Finish all reductions; every ``.grad`` is then its mean over the processes."""
        for work, total, grads in self._pending:
            work.wait()
            total /= comm.get_world_size()
            for grad, mean in zip(grads, total.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(mean.view_as(grad))
        self._pending.clear()


def worst_of_processes(figures):
    """The maximum over the processes of each of several scalars, so that all processes decide alike.

    Args:
        figures: list of scalar tensors on one device; what is not a number counts as infinite.

    Returns:
        list[float]
    """
    worst = torch.stack(figures).nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("inf"))
    if comm.get_world_size() > 1:
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return worst.tolist()


class Terminated(BaseException):
    """Ends the training loop after SIGTERM. No Exception, which the loop would take for a failure."""


class StopOnSigterm(HookBase):
    """Makes of SIGTERM, a cluster's preemption, a checkpoint and an orderly end.

    The signal sets ``received``. Within each step the processes agree whether any of them has received it (the trainer
    sets ``agreed``), and after that step all of them stop.
    """

    received = agreed = False

    def _receive(self, *_):
        self.received = True

    def before_train(self):
        self.previous = signal.signal(signal.SIGTERM, self._receive)

    def after_step(self):
        iteration = self.trainer.iter
        if self.agreed and iteration + 1 < self.trainer.max_iter:
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            logger.info(f"SIGTERM: checkpoint written after iteration {iteration}; go on with --resume")
            raise Terminated

    def after_train(self):
        signal.signal(signal.SIGTERM, self.previous)


def outlive_sigterm(*_):
    """Let a loader's worker end on its parent's SIGTERM only, not on one that is sent to all processes of a job: the
    parent still needs a batch to finish the iteration."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not say who has sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_parent():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()

"""Agreement between processes: the same parameters at the start, mean gradients in each step."""

import torch
import torch.distributed as dist
from detectron2.utils import comm


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
    if not figures:  # without units nothing learns
        return []
    worst = torch.stack(figures).nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("inf"))
    if comm.get_world_size() > 1:
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return worst.tolist()

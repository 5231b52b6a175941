"""Agreement between processes: the same parameters at the start, mean gradients in each step, common decisions."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from detectron2.utils import comm


def size_of(group: dist.ProcessGroup | None) -> int:
    """Number of processes in a group; None: all."""
    return comm.get_world_size() if group is None else group.size()


def broadcast_state(model: torch.nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Copy the parameters and buffers of process 0 to all processes.

    Args:
        model: of which each process has one.
        group: all processes, if not the default one, whose backend may want tensors on GPUs.
    """
    if comm.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0, group=group)


class GradientReducer:
    """Averages gradients over the processes, one unit's while the next unit runs forward.

    DistributedDataParallel cannot be used: it reduces after one backward pass, and here several reach a parameter.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """
        Args:
            group: the processes; None: all.
        """
        self._group, self._size = group, size_of(group)
        self._pending: list[tuple[dist.Work, torch.Tensor, list[torch.Tensor]]] = []  # handle, flat sum, gradients

    def __call__(self, parameters: Iterable[torch.Tensor]) -> None:
        """Start to average the gradients of some parameters; they must not be touched before :meth:`wait`.

        Args:
            parameters: the same in every process; those without a gradient are skipped.
        """
        if self._size == 1:
            return
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for grad in (p.grad for p in parameters if p.grad is not None):
            by_dtype.setdefault(grad.dtype, []).append(grad)
        for grads in by_dtype.values():
            total = torch.cat([grad.flatten() for grad in grads])
            self._pending.append((dist.all_reduce(total, group=self._group, async_op=True), total, grads))

    def wait(self) -> None:
        """Wait for all reductions; every ``.grad`` is then its mean over the processes."""
        for work, total, grads in self._pending:
            work.wait()
            total /= self._size
            for grad, mean in zip(grads, total.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(mean.view_as(grad))
        self._pending.clear()


def worst_of_processes(figures: list[torch.Tensor], group: dist.ProcessGroup | None = None) -> list[float]:
    """Each scalar's maximum over the processes, from which all of them draw the same conclusion.

    Args:
        figures: scalar tensors on one device; NaN and infinities of both signs count as infinite.
        group: the processes; None: all.
    """
    if not figures:  # a config without units
        return []
    worst = torch.stack(figures).nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("inf"))
    if size_of(group) > 1:
        dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=group)
    return worst.tolist()


def any_process(flag: bool, group: dist.ProcessGroup | None = None) -> bool:
    """Whether ``flag`` is set in any process; a collective operation, which all processes call together.

    Args:
        flag: that of this process.
        group: the processes; None: all.
    """
    if size_of(group) == 1:
        return bool(flag)
    total = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total, group=group)
    return total.item() > 0

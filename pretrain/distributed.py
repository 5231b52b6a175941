"""Agreement between processes: same parameters at the start, mean gradients at each step."""

import torch
import torch.distributed as dist
from detectron2.utils import comm


def broadcast_state(model):
    """Give every process the parameters and buffers of process 0."""
    if comm.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def average_gradients(parameters):
    """Replace every ``.grad`` by its mean over the processes, in one reduction.

    DistributedDataParallel reduces when ONE backward pass reaches a parameter; here several partial ones do.

    Args:
        parameters: iterable of parameters, in the same order in every process.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if comm.get_world_size() > 1 and grads:
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= comm.get_world_size()
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

"""Losses between the embeddings of two views: pure functions of two matrices."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.distributed.nn as dist_nn
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_gather
from torch import Tensor


def info_nce(z1: Tensor, z2: Tensor, temperature: float, group: dist.ProcessGroup | None = None) -> Tensor:
    """InfoNCE of SimCLR (NT-Xent, arXiv 2002.05709, Eq. 1), averaged over the 2B anchors of this process.

    Across processes the anchors are local and the candidates come from everybody. The gather's backward sums the
    gradients of all processes, so that averaging parameter gradients over processes gives exactly the gradient of
    the loss over the whole batch.

    Args:
        z1, z2: embeddings of the two views, (B, D); row i of both is the same image. Need not be normalised.
        temperature: divides the cosine similarities.
        group: the processes that divide the batch; None: all.

    Returns:
        The loss, a scalar.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.cat([z1, z2])
        z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)  # bfloat16 is too coarse here
        candidates = torch.cat(_gathered(z, group))  # (world * 2B, D)
        logits = z @ candidates.T / temperature
    n = len(z)
    row = torch.arange(n, device=z.device)
    rank = comm.get_rank() if group is None else group.rank()
    first = rank * n  # where this process's embeddings start among the candidates
    logits[row, first + row] = float("-inf")  # an anchor is not its own candidate
    return F.cross_entropy(logits, first + (row + n // 2) % n)


def barlow_twins(z1: Tensor, z2: Tensor, lambd: float, group: dist.ProcessGroup | None = None) -> Tensor:
    """The loss of Barlow Twins (arXiv 2103.03230, Eq. 1 and 2): the cross-correlation of two views should be one.

    Every dimension of each view is standardised over the batch, as BN without affine parameters does in the reference
    code (facebookresearch/barlowtwins, main.py). Means, variances and the correlation are those of the batch of all
    processes; all have the same loss, and averaging parameter gradients over processes gives exactly its gradient.

    Args:
        z1, z2: embeddings of the two views, (B, D); row i of both is the same image.
        lambd: weight of the off-diagonal terms.
        group: the processes that divide the batch; None: all.

    Returns:
        The loss, a scalar.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.stack([z1, z2])
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        n = z.shape[1] * _size(group)
        z = z - _sum_over_processes(z.sum(1, keepdim=True), group) / n
        z = z * torch.rsqrt(_sum_over_processes(z.square().sum(1, keepdim=True), group) / n + 1e-5)
        correlation = _sum_over_processes(z[0].T @ z[1], group) / n  # (D, D)
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + lambd * off_diagonal


def vicreg(
    z1: Tensor, z2: Tensor, weights: Sequence[float] = (25.0, 25.0, 1.0), group: dist.ProcessGroup | None = None
) -> Tensor:
    """The loss of VICReg (arXiv 2105.04906): invariance, variance and covariance.

    As in the authors' code (facebookresearch/vicreg, main_vicreg.py), which differs from the paper's equations: the
    invariance is the mean squared difference over images and dimensions (Eq. 5: the mean over images of the squared
    distance), and the variance is the mean of both views' (Eq. 6: their sum). Means and covariances are those of the
    batch of all processes; all have the same loss, and averaging parameter gradients over processes gives exactly its
    gradient.

    Args:
        z1, z2: embeddings of the two views, (B, D); row i of both is the same image. At least two images over all
            processes.
        weights: of the invariance, the variance and the covariance (lambda, mu and nu).
        group: the processes that divide the batch; None: all.

    Returns:
        The loss, a scalar.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.stack([z1, z2])
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        n, dimensions = z.shape[1] * _size(group), z.shape[2]
        invariance = _sum_over_processes((z[0] - z[1]).square().sum(), group) / (n * dimensions)
        z = z - _sum_over_processes(z.sum(1, keepdim=True), group) / n
        covariance = _sum_over_processes(z.mT @ z, group) / (n - 1)  # (2, D, D), of each view
        variance = covariance.diagonal(dim1=1, dim2=2)
        hinge = F.relu(1 - (variance + 1e-4).sqrt()).mean()
        off_diagonal = (covariance.square().sum() - variance.square().sum()) / dimensions
        return weights[0] * invariance + weights[1] * hinge + weights[2] * off_diagonal


def _size(group: dist.ProcessGroup | None) -> int:
    return comm.get_world_size() if group is None else group.size()


def _gathered(z: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
    """``z`` of each process; the backward sums the gradients of all of them."""
    if group is None:
        return differentiable_all_gather(z)
    # As a sum with zeros: with gloo, torch's own differentiable gather knows no groups of some processes
    own = [z if rank == group.rank() else torch.zeros_like(z) for rank in range(group.size())]
    return list(_sum_over_processes(torch.stack(own), group))


def _sum_over_processes(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum over processes, whose backward sums the gradients of all of them; fvcore's would gather all ``x`` first."""
    if _size(group) == 1:
        return x
    return dist_nn.all_reduce(x) if group is None else dist_nn.all_reduce(x, group=group)

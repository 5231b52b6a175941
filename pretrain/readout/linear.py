"""Linear classifiers of all stages and learning rates, trained in one pass over the same features.

Each result is the same as if trained alone, because the losses are summed and no two classifiers share a parameter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn

from ..engine.optim import lars

ROWS = 1024  # number of images that are classified at a time


class LinearClassifiers(nn.Module):
    """One ``nn.Linear`` for each stage and learning rate.

    Their initial weights have standard deviation 0.01, and their biases are 0, as in MoCo's main_lincls.py. Those of a
    stage are all the same and depend only on the seed and the stage's name, not on further stages and rates.
    """

    heads: Any  # ModuleDict of ModuleLists of nn.Linear; mypy knows its items only as Module
    norms: Any  # ModuleDict of nn.BatchNorm1d

    def __init__(
        self, channels: Mapping[str, int], num_rates: int, num_classes: int, seed: int, standardize: bool = False
    ) -> None:
        """
        Args:
            channels: stage name -> number of its features, C.
            num_rates: number of classifiers for each stage, R.
            num_classes: number of classes, K.
            seed: of the initial weights.
            standardize: whether BN without affine precedes the classifiers (FEATURES.STANDARDIZE).
        """
        super().__init__()
        self.heads, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for name, width in channels.items():
            heads = [nn.utils.skip_init(nn.Linear, width, num_classes) for _ in range(num_rates)]
            entropy = int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])
            weight = 0.01 * torch.randn(num_classes, width, generator=torch.Generator().manual_seed(entropy))
            for head in heads:
                head.weight.data.copy_(weight)
                head.bias.data.zero_()
            self.heads[name] = nn.ModuleList(heads)
            if standardize:
                self.norms[name] = nn.BatchNorm1d(width, affine=False, eps=1e-6)  # MAE's eps: pooled features are small

    @torch.no_grad()
    def fix_statistics(self, features: Mapping[str, torch.Tensor], rows: torch.Tensor) -> None:
        """Standardise by fixed statistics from now on.

        Args:
            features: stage name -> (N, C).
            rows: (M,) long, the images whose statistics are used.
        """
        for name, norm in self.norms.items():
            variance, mean = torch.var_mean(features[name][rows].double(), 0, correction=0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
        self.norms.eval()

    def forward(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Args:
            features: stage name -> (B, C).

        Returns:
            Stage name -> (B, R, K), the logits.
        """
        scores = {}
        for name, heads in self.heads.items():
            x = features[name].to(heads[0].weight.dtype)
            x = _standardized(x, self.norms[name]) if name in self.norms else x
            # One matrix product for all learning rates
            x = F.linear(x, torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads]))
            scores[name] = x.unflatten(1, (len(heads), -1))
        return scores

    def losses(self, features: Mapping[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross-entropy of each classifier, in nats.

        Args:
            features: stage name -> (B, C).
            labels: (B,) long.

        Returns:
            Stage name -> (R,), means over the batch.
        """
        losses = {}
        for name, scores in self(features).items():
            rates = scores.shape[1]
            each = F.cross_entropy(scores.flatten(0, 1), labels.repeat_interleave(rates), reduction="none")
            losses[name] = each.view(-1, rates).mean(0)
        return losses

    @torch.no_grad()
    def accuracies(
        self, features: Mapping[str, torch.Tensor], labels: torch.Tensor
    ) -> dict[str, dict[str, list[float]]]:
        """Top-1 and top-5 accuracy of each classifier.

        Args:
            features: stage name -> (N, C), on any device.
            labels: (N,) long.

        Returns:
            Stage name -> {"top1": R percentages}, with "top5" if there are more than 5 classes; NaN where a logit is
            not finite.
        """
        mode = self.norms.training
        self.norms.eval()
        device = next(self.parameters()).device
        hits: dict[str, list[torch.Tensor]] = {}
        for first in range(0, len(labels), ROWS):
            part = {name: features[name][first : first + ROWS].to(device) for name in self.heads}
            truth = labels[first : first + ROWS].to(device)[:, None, None]
            for name, scores in self(part).items():
                ranked = (scores.topk(min(5, scores.shape[2])).indices == truth).double()  # (B, R, 5)
                known = scores.isfinite().all(2, keepdim=True)
                hits.setdefault(name, []).append(ranked.where(known, torch.nan).sum(0))
        self.norms.train(mode)
        results: dict[str, dict[str, list[float]]] = {}
        for name, parts in hits.items():
            share = 100 * torch.stack(parts).sum(0) / len(labels)
            results[name] = {"top1": share[:, 0].tolist()}
            if self.heads[name][0].out_features > 5:
                results[name]["top5"] = share.sum(1).tolist()
        return results


def _standardized(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """BN over the global batch. No gradient flows through it, so every process normalises the whole batch."""
    if not norm.training or comm.get_world_size() == 1:
        return norm(x)
    parts = [torch.empty_like(x) for _ in range(comm.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return norm(torch.cat(parts)).chunk(len(parts))[comm.get_rank()]


def build_optimizer(cfg: CfgNode, classifiers: LinearClassifiers) -> torch.optim.Optimizer:
    """The optimiser, with a group of parameters for each learning rate.

    Args:
        cfg: the SOLVER node.
        classifiers: with one classifier per stage for each BASE_LR.

    Returns:
        SGD with weight decay also on biases, as in the published linear evaluations; or LARS with neither weight decay
        nor adaptation on biases.
    """
    weights, offsets = [], []
    for i, base_lr in enumerate(cfg.BASE_LR):
        heads = [heads[i] for heads in classifiers.heads.values()]
        group = {"lr": base_lr * cfg.IMS_PER_BATCH / 256, "weight_decay": cfg.WEIGHT_DECAY}
        weights.append({**group, "params": [head.weight for head in heads]})
        offsets.append({**group, "params": [head.bias for head in heads]})
    options = {"lr": weights[0]["lr"], "momentum": cfg.MOMENTUM, "nesterov": cfg.NESTEROV}
    if cfg.OPTIMIZER == "LARS":
        return lars(weights, offsets, **options)
    return torch.optim.SGD(weights + offsets, **options)


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer, epoch_iters: int, max_iter: int) -> LRMultiplier:
    """The learning rate schedule: a factor of GAMMA at each of STEPS, or a cosine to 0.

    Args:
        cfg: the SOLVER node.
        optimizer: whose learning rates are scaled.
        epoch_iters: iterations in an epoch.
        max_iter: iterations in the run.

    Raises:
        ValueError: if two of STEPS fall on the same iteration.
    """
    if cfg.SCHEDULE == "cosine":
        return LRMultiplier(optimizer, CosineParamScheduler(1, 0), max_iter)
    milestones = [round(step * epoch_iters) for step in cfg.STEPS]
    if not all(a < b for a, b in zip([0, *milestones], [*milestones, max_iter], strict=True)):
        raise ValueError(
            f"SOLVER.STEPS {cfg.STEPS} cannot be told apart in {max_iter} iterations, {epoch_iters} an epoch"
        )
    values = [cfg.GAMMA**i for i in range(len(milestones) + 1)]
    return LRMultiplier(
        optimizer, MultiStepParamScheduler(values, milestones=milestones, num_updates=max_iter), max_iter
    )

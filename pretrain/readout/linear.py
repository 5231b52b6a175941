"""Linear classifiers of all stages and learning rates, trained in one pass over the same features.

Each is what it would be if trained alone: losses are summed, and no parameter belongs to two of them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from ..engine.optim import lars

ROWS = 1024  # images that are classified at a time


class LinearClassifiers(nn.Module):
    """For each stage as many ``nn.Linear`` as there are learning rates.

    They begin with weights from N(0, 0.01) and offsets 0, as in MoCo's main_lincls.py; those of one stage with the same
    weights, which depend on the seed and the stage's name only, so that further stages and rates change nothing.
    """

    def __init__(self, channels, num_rates, num_classes, seed, standardize=False):
        """
        Args:
            channels: dict of stage name -> number of its features, C.
            num_rates: classifiers for each stage, R.
            num_classes: K.
            seed: of the weights.
            standardize: whether BN without affine comes before them (FEATURES.STANDARDIZE).
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
    def fix_statistics(self, features: dict[str, Tensor], rows: Tensor) -> None:
        """Standardise from now on by the statistics of some images.

        Args:
            features: stage name -> (N, C).
            rows: (M,) long, which of the N images count.
        """
        for name, norm in self.norms.items():
            variance, mean = torch.var_mean(features[name][rows].double(), 0, correction=0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
        self.norms.eval()

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        Args:
            features: stage name -> (B, C).

        Returns:
            dict: stage name -> (B, R, K), the scores of the classes.
        """
        scores = {}
        for name, heads in self.heads.items():
            x = features[name].to(heads[0].weight.dtype)
            x = _standardized(x, self.norms[name]) if name in self.norms else x
            # one product for all learning rates; it has no column in common
            x = F.linear(x, torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads]))
            scores[name] = x.unflatten(1, (len(heads), -1))
        return scores

    def losses(self, features: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, in nats, of each classifier: stage name -> (R,). Arguments as :meth:`accuracies`."""
        losses = {}
        for name, scores in self(features).items():
            rates = scores.shape[1]
            each = F.cross_entropy(scores.flatten(0, 1), labels.repeat_interleave(rates), reduction="none")
            losses[name] = each.view(-1, rates).mean(0)
        return losses

    @torch.no_grad()
    def accuracies(self, features: dict[str, Tensor], labels: Tensor) -> dict[str, dict[str, list[float]]]:
        """Top-1 and top-5 accuracy of each classifier.

        Args:
            features: stage name -> (N, C), on any device.
            labels: (N,) long.

        Returns:
            dict: stage name -> {"top1": list of R percentages}, with "top5" if there are more than 5 classes; NaN
            where a score is not finite.
        """
        mode = self.norms.training
        self.norms.eval()
        device, hits = next(self.parameters()).device, {}
        for first in range(0, len(labels), ROWS):
            part = {name: features[name][first : first + ROWS].to(device) for name in self.heads}
            truth = labels[first : first + ROWS].to(device)[:, None, None]
            for name, scores in self(part).items():
                ranked = (scores.topk(min(5, scores.shape[2])).indices == truth).double()  # (B, R, 5)
                known = scores.isfinite().all(2, keepdim=True)
                hits.setdefault(name, []).append(ranked.where(known, torch.nan).sum(0))
        self.norms.train(mode)
        results = {}
        for name, parts in hits.items():
            share = 100 * torch.stack(parts).sum(0) / len(labels)
            results[name] = {"top1": share[:, 0].tolist()}
            if self.heads[name][0].out_features > 5:
                results[name]["top5"] = share.sum(1).tolist()
        return results


def _standardized(x, norm):
    """BN of the global batch: as there is no gradient to come back, every process may normalise all of it."""
    if not norm.training or comm.get_world_size() == 1:
        return norm(x)
    parts = [torch.empty_like(x) for _ in range(comm.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return norm(torch.cat(parts)).chunk(len(parts))[comm.get_rank()]


def build_optimizer(cfg: CfgNode, classifiers: LinearClassifiers) -> Optimizer:
    """The optimiser, a group of parameters for each learning rate.

    Args:
        cfg: the SOLVER node.
        classifiers: :class:`LinearClassifiers`, as many for each stage as there are BASE_LR.

    Returns:
        Optimizer: of SGD with weight decay on offsets too, as the published linear evaluations do; of LARS without, and
        without adaptation of their learning rate.
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


def build_scheduler(cfg: CfgNode, optimizer: Optimizer, epoch_iters: int, max_iter: int) -> LRMultiplier:
    """The learning rate of each iteration: x GAMMA at each of STEPS, or a cosine to 0.

    Args:
        cfg: the SOLVER node.
        epoch_iters: iterations in an epoch.
        max_iter: iterations in the run.

    Raises:
        ValueError: if two of STEPS are in the same iteration.
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

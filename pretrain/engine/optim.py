"""Parameter groups, optimiser and schedule of the SimCLR family."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import CompositeParamScheduler, CosineParamScheduler, LinearParamScheduler
from torch import nn
from torch.optim import Optimizer


def lars(weights: list[dict], rest: list[dict], **options: Any) -> Optimizer:
    """LARS of the SimCLR family: trust coefficient 0.001, neither weight decay nor adaptation of BN and biases.

    Its momentum leaves the learning rate outside the buffer, as torch's SGD; SimCLR's code has it inside.

    Args:
        weights: groups of parameters whose learning rate is adapted, even where their decay is 0.
        rest: groups of BN's parameters and of biases.
        options: of all groups that do not have their own: "lr", "momentum", "nesterov".
    """
    from timm.optim import Lars  # here, because importing timm takes seconds

    adapted = [{**group, "always_adapt": True} for group in weights]  # timm's would skip those without decay
    return Lars([*adapted, *({**group, "weight_decay": 0.0} for group in rest)], trust_coeff=0.001, **options)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """The optimiser, with neither weight decay nor LARS adaptation on BN and biases (SimCLR, Sec. 2.2 and code).

    Args:
        cfg: the SOLVER node.
        model: module whose parameters are trained.

    Returns:
        Optimizer: its learning rate is BASE_LR * IMS_PER_BATCH / 256, and BIAS_LR_FACTOR times that for BN and biases.

    Raises:
        ValueError: if OPTIMIZER is not known.
    """
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]  # BN's weights and biases, and biases
    groups = [{"params": weights, "weight_decay": cfg.WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    lr = cfg.BASE_LR * cfg.IMS_PER_BATCH / 256
    groups[1]["lr"] = lr * cfg.BIAS_LR_FACTOR
    if cfg.OPTIMIZER == "LARS":
        return lars(groups[:1], groups[1:], lr=lr, momentum=cfg.MOMENTUM)
    if cfg.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, lr=lr, momentum=cfg.MOMENTUM)
    if cfg.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups, lr=lr)
    raise ValueError(f"unknown SOLVER.OPTIMIZER {cfg.OPTIMIZER!r}: choose one of LARS, SGD, AdamW")


def build_scheduler(cfg: CfgNode, optimizer: Optimizer, max_iter: int) -> LRMultiplier:
    """Linear warm-up from 0 over WARMUP_EPOCHS of EPOCHS, then a cosine to 0 without restarts.

    Args:
        cfg: the SOLVER node.
        max_iter: iterations in the run.

    Raises:
        ValueError: if the warm-up is not shorter than the run.
    """
    warmup = cfg.WARMUP_EPOCHS / cfg.EPOCHS
    if not 0 <= warmup < 1:
        raise ValueError(f"SOLVER.WARMUP_EPOCHS {cfg.WARMUP_EPOCHS} must be less than SOLVER.EPOCHS {cfg.EPOCHS}")
    schedule = CosineParamScheduler(1, 0)
    if warmup:
        schedule = CompositeParamScheduler(
            [LinearParamScheduler(0, 1), schedule], [warmup, 1 - warmup], ["rescaled", "rescaled"]
        )
    return LRMultiplier(optimizer, schedule, max_iter)

"""Parameter groups, optimiser and schedule of the SimCLR family."""

from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.solver import LRMultiplier
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import nn

from .sequential import Turns, TurnsScheduler

# Parameters of transformers with several dimensions that are no weights of a layer: timm's no_weight_decay() has them
NO_WEIGHTS = {
    "cls_token", "dist_token", "reg_token", "pos_embed", "relative_position_bias_table", "logit_scale",
}  # fmt: skip


def lars(weights: list[dict], rest: list[dict], **options: Any) -> torch.optim.Optimizer:
    """LARS of the SimCLR family: trust coefficient 0.001, neither weight decay nor adaptation of norms and biases.

    Its momentum leaves the learning rate outside the buffer, as torch's SGD; SimCLR's code has it inside.

    Args:
        weights: groups of parameters whose learning rate is adapted, even where their decay is 0.
        rest: groups of all other parameters, those of norms and biases.
        options: of all groups that do not have their own: "lr", "momentum", "nesterov".
    """
    from timm.optim import Lars  # here, because importing timm takes seconds

    adapted = [{**group, "always_adapt": True} for group in weights]  # timm's would skip those without decay
    return Lars([*adapted, *({**group, "weight_decay": 0.0} for group in rest)], trust_coeff=0.001, **options)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser, without weight decay and LARS adaptation on norms and biases (SimCLR, Sec. 2.2 and code).

    Neither has what transformers add: class and register tokens, position embeddings and biases, layer scale.

    Args:
        cfg: the SOLVER node.
        model: the module to train. Parameters without memory ("meta") belong to another process.

    Returns:
        LARS, SGD or AdamW with a learning rate of BASE_LR * IMS_PER_BATCH / 256, for all parameters without decay
        times BIAS_LR_FACTOR.

    Raises:
        ValueError: if OPTIMIZER is not known.
    """
    own = [(is_weight(name, p), p) for name, p in model.named_parameters() if not p.is_meta]
    weights, rest = ([p for is_one, p in own if is_one == wanted] for wanted in (True, False))
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


def is_weight(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is the weight of a linear layer or a conv, for which weight decay and LARS are made.

    Args:
        name: its last part is compared with ``NO_WEIGHTS``.
        parameter: norms, biases and layer scale have one dimension.
    """
    return parameter.ndim > 1 and name.rpartition(".")[2] not in NO_WEIGHTS


def build_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer, max_iter: int, turns: Turns | None = None
) -> LRMultiplier:
    """Linear warm-up from 0 over WARMUP_EPOCHS of EPOCHS, then a cosine to 0 without restarts.

    Units that learn one after the other share EPOCHS equally, and each has a warm-up and a cosine of its own.

    Args:
        cfg: the SOLVER node.
        optimizer: whose learning rates are scaled.
        max_iter: iterations in the run.
        turns: of the units that learn one after the other; None: all at once.

    Raises:
        ValueError: if the warm-up is not shorter than the run, or than a turn.
    """
    parts = len(turns.units) if turns else 1
    warmup = cfg.WARMUP_EPOCHS / (cfg.EPOCHS / parts)
    if not 0 <= warmup < 1:
        shared = f" / {parts} units (SOLVER.SEQUENTIAL)" if turns else ""
        raise ValueError(
            f"SOLVER.WARMUP_EPOCHS {cfg.WARMUP_EPOCHS} must be less than SOLVER.EPOCHS {cfg.EPOCHS}{shared}"
        )
    schedule: ParamScheduler = CosineParamScheduler(1, 0)
    if warmup:
        schedule = CompositeParamScheduler(
            [LinearParamScheduler(0, 1), schedule], [warmup, 1 - warmup], ["rescaled", "rescaled"]
        )
    return LRMultiplier(optimizer, TurnsScheduler(schedule, turns) if turns else schedule, max_iter)


class WeightsLRScheduler(hooks.LRScheduler):
    """Detectron2's LRScheduler that logs the learning rate of the weights.

    Detectron2 logs that of the group with the most tensors, which is BN and biases.
    """

    def before_train(self) -> None:
        super().before_train()
        self._best_param_group_id = 0

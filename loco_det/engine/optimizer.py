"""The optimiser of a detector: Detectron2's SGD, or AdamW; layer-wise decay of the learning rate."""

import re
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

OPTIMIZERS = ("SGD", "AdamW")
# Layer scales, by timm's names: one number a channel, as norms have
UNDECAYED = re.compile(r"(^|\.)(gamma_?\d?|ls\d|layer_scale|(layer|res)_scale\d\.scale)$")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of SOLVER.OPTIMIZER for what learns in a detector.

    With AdamW what timm names in ``no_weight_decay`` (position embeddings, class tokens, tables of relative positions)
    and layer scales have no weight decay, as in ViTDet and ConvNeXt; for norms and biases SOLVER.WEIGHT_DECAY_NORM and
    WEIGHT_DECAY_BIAS say it.

    Args:
        cfg: the config.
        model: a detector.

    Raises:
        ValueError: if there is no such optimiser, or SOLVER.LAYER_DECAY is none or has no network of timm to work on.
    """
    check_optimizer(cfg)
    networks = _networks(model) if cfg.MODEL.TIMM.NAME else {}
    factor = _factor(cfg.SOLVER.LAYER_DECAY, networks)
    if cfg.SOLVER.OPTIMIZER == "SGD" and factor is None:
        return build_sgd(cfg, model)
    solver, adamw = cfg.SOLVER, cfg.SOLVER.OPTIMIZER == "AdamW"
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor,
    )
    optimizer: torch.optim.Optimizer
    if adamw:
        groups = _without_decay(parameters, _undecayed(networks))
        optimizer = torch.optim.AdamW(groups, solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    else:
        optimizer = torch.optim.SGD(
            parameters,
            solver.BASE_LR,
            momentum=solver.MOMENTUM,
            nesterov=solver.NESTEROV,
            weight_decay=solver.WEIGHT_DECAY,
        )
    return maybe_add_gradient_clipping(cfg, optimizer)


def check_optimizer(cfg: CfgNode) -> None:
    """ValueError, one line, if SOLVER.OPTIMIZER or SOLVER.LAYER_DECAY cannot be used with the config's backbone."""
    name, decay = cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LAYER_DECAY
    if name not in OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER {name!r}: use one of {', '.join(OPTIMIZERS)}")
    if not 0 < decay <= 1:
        raise ValueError(f"SOLVER.LAYER_DECAY {decay}: expected a factor above 0, up to 1")
    if decay != 1 and not cfg.MODEL.TIMM.NAME:
        raise ValueError(f"SOLVER.LAYER_DECAY {decay} is for networks of timm (MODEL.TIMM.NAME): set it to 1")


def _networks(model):
    """Name of each network of timm in a detector -> the network."""
    from ..modeling.timm.backbone import TimmBackbone  # here: timm takes a second

    backbones = {name: module for name, module in model.named_modules() if isinstance(module, TimmBackbone)}
    return {f"{name}.network": module.network for name, module in backbones.items()}


def _factor(decay, networks) -> Callable[[str], float] | None:
    """A parameter's name -> the factor of its learning rate; None: all are 1."""
    if decay == 1:
        return None
    from ..modeling.timm.layers import decay_factors  # as above

    factors: dict[str, float] = {}
    for prefix, network in networks.items():
        factors |= {f"{prefix}.{key}": value for key, value in decay_factors(network, decay).items()}
    return lambda name: factors.get(name, 1.0)


def _undecayed(networks):
    """The parameters of networks of timm without weight decay, by their id."""
    found = set()
    for network in networks.values():
        listed = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
        for name, parameter in network.named_parameters():
            if name in listed or UNDECAYED.search(name):
                found.add(id(parameter))
    return found


def _without_decay(groups, undecayed):
    """Groups of parameters, each split into those with weight decay and those without."""
    split = []
    for group in groups:
        kept = [p for p in group["params"] if id(p) not in undecayed]
        rest = [p for p in group["params"] if id(p) in undecayed]
        split += [{**group, "params": kept}] if kept else []
        split += [{**group, "params": rest, "weight_decay": 0.0}] if rest else []
    return split

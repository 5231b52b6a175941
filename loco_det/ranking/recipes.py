"""How long and at which learning rates detectors are trained for each budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.encoders import BUILDERS, NamedEncoder, build_encoder, parse_encoder

from .data import Data

PROTOCOLS = ("frozen", "finetune", "probe", "knn")
DETECTORS = PROTOCOLS[:2]
BUDGETS = {
    "paper": "the recipe's own schedule: COCO 1x, Cityscapes 64 epochs, Pascal VOC 24k iterations; own data 12 epochs",
    "short": "an eighth of it: enough to rank backbones",
    "minutes": "a light head on cached features of the frozen backbone: a ranking, no Mask R-CNN figure",
}
SHORTER = 8  # times fewer iterations of the budget "short"
LEAST = {"paper": 2000, "short": 350}  # iterations on data of one's own
EPOCHS = {"paper": 12.0, "short": 1.5}  # on data of one's own; 12.3 is COCO's 1x
FREEZE_ALL = 99  # MODEL.BACKBONE.FREEZE_AT of a frozen network of timm: a ViT's blocks are counted, and 5 is a few
FACTORS = (0.5, 1.0, 2.0)  # of the recipe's learning rate: the grid
HELD_OUT = 20  # percent of the training images, on which the rate is chosen
LIGHT = {"coco": "evaluate/light_coco.yaml", "voc": "evaluate/light_voc.yaml"}  # configs of the budget "minutes"
LIGHT_SMALL = "evaluate/light_small.yaml"  # of one's own small images
LIGHT_MEDIUM, MEDIUM = "evaluate/light_nuclei.yaml", 192  # of those whose shorter side is at least so many pixels


@dataclass
class Recipe:
    """How detectors of one protocol are trained.

    Attributes:
        tool: train_net.py or light_head.py.
        config: shipped name of the config that it builds on.
        keys: nested keys that are merged over it, as in a config file.
        iterations: of a training.
        images: in a step.
        rates: learning rates to choose from; a single one is not chosen.
        megapixels: of an image.
    """

    tool: str
    config: str
    keys: dict[str, Any]
    iterations: int
    images: int
    rates: list[float]
    megapixels: float


def base_config(data: Data, budget: str) -> str:
    """Shipped name of the config for some data and a budget.

    Raises:
        ValueError: if the budget is not for these data.
    """
    if budget != "minutes":
        return data.config
    if data.side:
        return LIGHT_MEDIUM if data.side >= MEDIUM else LIGHT_SMALL
    if data.name == "cityscapes" and not data.custom:
        raise ValueError("--budget minutes has boxes only, and Cityscapes is evaluated by masks: use --budget short")
    return LIGHT["coco" if data.custom else data.name]


def recipe(
    cfg: CfgNode, data: Data, budget: str, protocol: str, rates: Sequence[float] = (), scheduled: bool = False
) -> Recipe:
    """The recipe of a protocol.

    Args:
        cfg: the data's config, with the user's overlays and KEY VALUE pairs.
        data: what is trained on.
        budget: a key of ``BUDGETS``.
        protocol: "frozen" or "finetune".
        rates: learning rates of the user's; none: ``FACTORS`` of the config's.
        scheduled: whether the config's number of iterations is the user's own.

    Raises:
        ValueError: if the budget has no such protocol.
    """
    if budget == "minutes" and protocol != "frozen":
        raise ValueError("--budget minutes trains a light head on cached features: leave out --protocol finetune")
    tool = "light_head.py" if budget == "minutes" else "train_net.py"
    solver, height = cfg.SOLVER, data.side or max(cfg.INPUT.MIN_SIZE_TRAIN)
    keys: dict[str, Any] = {"MODEL": {"BACKBONE": {"FREEZE_AT": 5 if protocol == "frozen" else 0}}}
    keys |= {"DATASETS": {"CUSTOM": data.custom}} if data.custom else {}
    if data.side:
        keys["INPUT"] = {"MIN_SIZE_TRAIN": [data.side], "MIN_SIZE_TEST": data.side}
        if data.side >= 256 and budget != "minutes":  # as in configs/detection/cpu_frozen
            keys["MODEL"]["ANCHOR_GENERATOR"] = {"SIZES": [[16], [32], [64], [128], [256]]}
    iterations = solver.MAX_ITER
    if budget != "minutes" and not scheduled:
        iterations = _iterations(solver, data, budget)
        scale = iterations / solver.MAX_ITER
        steps = [step for step in (round(step * scale) for step in solver.STEPS) if step < iterations]
        period = math.ceil(iterations / 4)
        keys["SOLVER"] = {"MAX_ITER": iterations, "STEPS": steps, "CHECKPOINT_PERIOD": period}
        keys["SOLVER"]["WARMUP_ITERS"] = min(solver.WARMUP_ITERS, iterations // 4)
    grid = sorted(set(rates)) or [float(f"{solver.BASE_LR * factor:.6g}") for factor in FACTORS]
    pixels = height * min(height * 4 / 3, cfg.INPUT.MAX_SIZE_TRAIN) / 1e6
    return Recipe(tool, base_config(data, budget), keys, iterations, solver.IMS_PER_BATCH, grid, pixels)


def is_timms(architecture: str | None) -> bool:
    """Whether an architecture is a network of timm, and no encoder of ``pretrain`` or a user's own code."""
    encoder = parse_encoder(architecture) if architecture else None
    return isinstance(encoder, NamedEncoder) and encoder.name not in BUILDERS and not encoder.is_own_code


def has_batchnorm(architecture: str | None) -> bool:
    """Whether random weights of an architecture need images to be of use: for the running averages of its BatchNorm.

    ViT, ConvNeXt and Swin have none. Of what is no network of timm, it is taken for granted.
    """
    if not is_timms(architecture):
        return True
    with torch.device("meta"):
        encoder = build_encoder(f"timm:{architecture}")
    return any(isinstance(module, _BatchNorm) for module in encoder.modules())


def _iterations(solver, data, budget):
    """Iterations of a training: of known data a share of the config's, of one's own by epochs."""
    if not data.custom:
        return solver.MAX_ITER if budget == "paper" else max(solver.MAX_ITER // SHORTER, 1)
    return max(math.ceil(EPOCHS[budget] * data.train_images / solver.IMS_PER_BATCH), LEAST[budget])

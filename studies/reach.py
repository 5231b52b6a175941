"""How much of a crop one position of a stage's output sees, before the decoders pool over all of them."""

import torch
from rows import CROPS
from study_tables import STAGES, table
from torch import nn

from pretrain.encoders import build_encoder

NETWORKS = [("resnet18x0.5", "here", size) for size in CROPS.values()] + [("resnet50", "the paper", 224)]


def receptive_fields(encoder):
    """Side of the square of the image that one value on top of each stage of a ResNet depends on, in pixels."""
    sides, side, step = {}, 1, 1
    for name, stage in zip(encoder.stage_names, encoder.stages, strict=True):
        for path, module in stage.named_modules():  # in the order in which they run
            if isinstance(module, nn.Conv2d | nn.MaxPool2d) and "downsample" not in path:
                kernel, stride = (x if isinstance(x, int) else x[0] for x in (module.kernel_size, module.stride))
                side, step = side + (kernel - 1) * step, step * stride
        sides[name] = side
    return sides


def reach_table():
    """The receptive field of each stage's top in crops' sides, for the study's sizes of crops and the paper's."""
    lines = []
    for encoder, where, size in NETWORKS:
        with torch.device("meta"):
            sides = receptive_fields(build_encoder(encoder))
        lines.append([f"{encoder}, {where}", size, *(f"{sides[stage] / size:.2f}" for stage in STAGES)])
    return table(["network", "crop, px", *STAGES], lines, "lr" + "r" * len(STAGES))

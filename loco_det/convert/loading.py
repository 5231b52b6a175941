"""A converted file as Detectron2's backbone, in Python."""

import os
from pathlib import Path

from torch import nn

from pretrain.files.yaml_files import read_config

from .networks import detectron2_network
from .verify import fill


def load_backbone(weights: str | os.PathLike[str], config_file: str | os.PathLike[str] | None = None) -> nn.Module:
    """Detectron2's backbone with converted weights, without FPN, in evaluation mode and with nothing frozen.

    Args:
        weights: a file that :func:`loco_det.convert_to_d2` wrote.
        config_file: the config beside it; None: of the same name.

    Returns:
        The backbone: images (B, 3, H, W), in the config's INPUT.FORMAT and normalised by its PIXEL_MEAN and PIXEL_STD,
        -> dict from stage names to features (B, C, H', W').

    Raises:
        FileNotFoundError: if there is no such config.
        ValueError: if the config cannot be read.
        VerificationError: if the file does not fill the backbone exactly.
    """
    path = Path(config_file) if config_file else Path(weights).with_suffix(".yaml")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config: name the one that was written with {weights}")
    backbone = detectron2_network(read_config(str(path)))
    fill(backbone, weights)
    return backbone.eval()

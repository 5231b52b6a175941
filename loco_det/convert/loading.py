"""A converted file as Detectron2's backbone, in Python."""

import os
from pathlib import Path

from torch import nn

from pretrain.encoders import is_own_code
from pretrain.files.safe_load import read
from pretrain.files.yaml_files import read_config

from .networks import detectron2_network
from .verify import fill


def load_backbone(
    weights: str | os.PathLike[str], config_file: str | os.PathLike[str] | None = None, arch: str | None = None
) -> nn.Module:
    """Load converted weights into Detectron2's backbone: without FPN, in evaluation mode, nothing frozen.

    Args:
        weights: a file that :func:`loco_det.convert_to_d2` wrote.
        config_file: the config beside it; None: of the same name.
        arch: ``package.module.function`` of the encoder, if it is your own: a file never decides which code runs.

    Returns:
        The backbone: images (B, 3, H, W), in the config's INPUT.FORMAT and normalised by its PIXEL_MEAN and PIXEL_STD,
        -> dict from stage names to features (B, C, H', W').

    Raises:
        FileNotFoundError: if there is no such config.
        ValueError: if the config or the weights cannot be read without running what they hold, or the encoder is your
            own and is not named.
        VerificationError: if the file does not fill the backbone exactly.
    """
    path = Path(config_file) if config_file else Path(weights).with_suffix(".yaml")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config: name the one that was written with {weights}")
    config = read_config(str(path))
    model = config.get("MODEL")
    if not isinstance(model, dict):
        raise ValueError(f"{path}: no config of a backbone: name the one that was written with {weights}")
    if is_own_code(name := model.get("ENCODER")) and name != arch:
        raise ValueError(f"{path}: its encoder is {name}, code of your own: name it as `arch` to have it run")
    try:
        content = read(weights)  # refuses what would run code: Detectron2's checkpointer, below, unpickles
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from None
    try:
        backbone = _network_of_timm(model, content) if model.get("TIMM") else detectron2_network({"MODEL": model})
    except (KeyError, AssertionError, TypeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    fill(backbone, weights)
    if model.get("TIMM"):
        backbone.final_norm = bool(model["TIMM"].get("FINAL_NORM", False))
    return backbone.eval()


def _network_of_timm(model, content):
    """A network of timm, for now with the norm after the last block, if that is in the file: all of it is filled."""
    from .timm.maps import backbone_of  # imports timm, which takes seconds

    names = content.get("model") if isinstance(content, dict) else None
    return backbone_of({"MODEL": model}, final_norm=isinstance(names, dict) and "network.norm.weight" in names)

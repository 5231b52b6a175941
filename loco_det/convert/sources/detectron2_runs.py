"""What the config of a Detectron2 run says of the network in its checkpoints."""

from detectron2.config import get_cfg

from .checkpoint_file import CheckpointFile
from .conventions import Conventions


def run_config(file: CheckpointFile) -> dict:
    """The config of a Detectron2 checkpoint: the one that was named, what our own files bring along, or that beside it.

    Returns:
        dict: nested, with a "MODEL".

    Raises:
        FileNotFoundError: if there is no such config.
        ValueError: if there is none, or if it has dilated convs.
    """
    config = file.get("config") if file.get("__author__") == "loco-det" else None
    if file.config_file or not config:
        config = file.run_config
    if not isinstance(config, dict) or not isinstance(config.get("MODEL"), dict):
        raise ValueError(
            "a Detectron2 checkpoint does not say where its strides are and what its pixels were: "
            "name the config of its run with --config-file"
        )
    resnets = config["MODEL"].get("RESNETS")
    for key in ("RES4_DILATION", "RES5_DILATION"):
        if isinstance(resnets, dict) and resnets.get(key, 1) != 1:
            raise ValueError(f"its config has {key} {resnets[key]}: dilated convs have the same shapes and are refused")
    return config


def conventions_of(config: dict) -> Conventions:
    """What a Detectron2 config says of the network's surroundings; Detectron2's defaults where it says nothing.

    Raises:
        ValueError: if its mean and std are not three numbers each.
    """
    defaults = get_cfg()

    def value(*keys):
        given, default = config, defaults
        for key in keys:
            given, default = given.get(key, {}) if isinstance(given, dict) else {}, default[key]
        return default if given == {} else given

    try:
        mean, std = (tuple(float(v) for v in value("MODEL", f"PIXEL_{what}")) for what in ("MEAN", "STD"))
        if (len(mean), len(std)) != (3, 3) or not all(std):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError("its config's MODEL.PIXEL_MEAN and PIXEL_STD are not three numbers each, or 0") from None
    return Conventions(value("INPUT", "FORMAT"), mean, std, value("MODEL", "RESNETS", "STRIDE_IN_1X1"))

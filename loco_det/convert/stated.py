"""What a checkpoint, or a file beside it, says of its network: its name, its pixels, its strides."""

import json
import re
from argparse import Namespace
from pathlib import Path

from detectron2.config import get_cfg

from pretrain.encoders import resnet_shape
from pretrain.files.checkpoints import FORMAT
from pretrain.files.yaml_files import parse_yaml, read_config

from .layouts import Conventions


def stated_by(content, path, timm=False):
    """What a checkpoint, or with ``timm`` the config.json beside it, says its network is and its pixels were.

    It says so in ours, in LightlyTrain's and in those of timm's train.py; for OpenMMLab's there is ``openmmlab``.

    Returns:
        tuple: name of the network or None, (mean, std) of RGB pixels from 0 to 255 or None.

    Raises:
        ValueError: if the config in one of our pretraining checkpoints does not say it.
    """
    beside = Path(path).parent / "config.json"
    try:
        card = json.loads(beside.read_text()) if timm and beside.is_file() else {}
    except (OSError, ValueError):  # it belongs to somebody else
        card = {}
    card = card if isinstance(card, dict) else {}
    stated = [dict.get(content, key) for key in ("encoder", "arch")] if isinstance(content, dict) else []  # ours; many
    stated = next((name for name in [*stated, card.get("architecture")] if isinstance(name, str)), None)
    if isinstance(content, dict) and dict.get(content, "format") == FORMAT and "config" in content:
        return stated, _pixels_of(content["config"])
    found = [dict.get(content, "lightly_train")] if isinstance(content, dict) else []
    found = [dict.get(one, "normalize_args") for one in found if isinstance(one, dict)]
    if timm and isinstance(content, dict) and isinstance(dict.get(content, "args"), Namespace):
        found.append(vars(content["args"]))  # --mean and --std of timm's train.py
    found.append(card.get("pretrained_cfg") if stated else None)
    return stated, next(filter(None, map(_pixels_from_0_to_1, found)), None)


def _pixels_from_0_to_1(config):
    """(mean, std), times 255, of a dictionary that has them for pixels from 0 to 1; None of others."""
    pixels = [config.get(key) for key in ("mean", "std")] if isinstance(config, dict) else [None]
    if not all(isinstance(v, (list, tuple)) and len(v) == 3 for v in pixels):
        return None
    if not all(isinstance(number, (int, float)) for values in pixels for number in values):
        return None
    return tuple(tuple(round(255 * value, 3) for value in values) for values in pixels)


def pretraining_of(content):
    """What one of our pretraining checkpoints says of its run, by which it is compared with a published row.

    Returns:
        dict: "config", nested; "images" that it learned from; "iterations" done. None for other files.
    """
    if not (isinstance(content, dict) and dict.get(content, "format") == FORMAT):
        return None
    try:
        config, images = parse_yaml(content["config"], "its config"), content["run"]["images"]
        return {"config": dict(config), "images": int(images), "iterations": int(content["iteration"]) + 1}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _pixels_of(config):
    """(mean, std) of the config, as text, of one of our pretraining checkpoints."""
    try:
        model = parse_yaml(config, "its config")["MODEL"]
        mean, std = (tuple(map(float, model[f"PIXEL_{what}"])) for what in ("MEAN", "STD"))
        if (len(mean), len(std)) != (3, 3) or not all(std):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("the config in it has no PIXEL_MEAN and PIXEL_STD of three numbers each") from None
    return mean, std


def agree(stated, found, location=""):
    """Raise ValueError if the file says that it holds another network than the one that its shapes tell.

    Args:
        stated: what it says, or None.
        found: name of the encoder.
        location: of the encoder, if it may be the user's own: our own files' names with dots are functions.
    """
    if location and stated and "." in stated and not resnet_shape(stated):
        raise ValueError(
            f"its encoder is {stated!r}, code of your own: if it computes what a {found} does, name its place with "
            f"--prefix {location}"
        )
    if stated and not resnet_shape(stated):
        stated = stated.split(".")[0]  # timm's names go on with those of the weights
    if stated and re.match(r"resnet(aa|blur)\d", stated):
        raise ValueError(f"a {stated} of timm: the names of a {found}, but anti-aliased: Detectron2 cannot compute it")
    if stated and (shape := resnet_shape(stated)) and shape.name not in (found, found.removesuffix("_same")):
        raise ValueError(f"the checkpoint calls its network {stated!r}, but the weights are a {found}'s")


def detectron2_config(content, path, config_file):
    """The config of a Detectron2 checkpoint: ``config_file``, what our own files bring along, or the one beside it.

    Returns:
        dict: nested, with a "MODEL".
    """
    config = content.get("config") if isinstance(content, dict) and content.get("__author__") == "loco-det" else None
    beside = Path(path).parent / "config.yaml"
    if config_file or (not config and beside.is_file()):
        try:
            config = read_config(str(config_file or beside))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error.filename or config_file}: no such config file") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{config_file or beside} is no config that can be read ({error})") from None
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


def detectron2_conventions(config):
    """What a Detectron2 config says of the network's surroundings; Detectron2's defaults where it says nothing."""
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

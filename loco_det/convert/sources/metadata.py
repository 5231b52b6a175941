"""What a checkpoint, or a model card beside it, says of its network: its name, its pixels, its pretraining."""

import re
from argparse import Namespace
from typing import NamedTuple

from pretrain.encoders import EncoderSpec, ResNetShape, parse_encoder

from .checkpoint_file import CheckpointFile
from .conventions import Pixels


class Metadata(NamedTuple):
    """What a checkpoint says of its network.

    Attributes:
        encoder: which it is, or None.
        pixels: mean and std of its RGB pixels from 0 to 255, or None.
    """

    encoder: EncoderSpec | None = None
    pixels: Pixels | None = None


def metadata_of(file: CheckpointFile, timm: bool = False, own_code: bool = False) -> Metadata:
    """What a checkpoint, or with ``timm`` the config.json beside it, says of its network.

    Ours, LightlyTrain's and those of timm's train.py say it; for OpenMMLab's there is ``openmmlab``.

    Args:
        file: the checkpoint.
        timm: whether it may be timm's, whose weights on the hub are bare.
        own_code: whether a name with dots may be a user's function, as in our own files; others' are timm's.

    Raises:
        ValueError: if the config in one of our pretraining checkpoints has no mean and std.
    """
    card = _model_card(file) if timm else {}
    names = [file.get("encoder"), file.get("arch"), card.get("architecture")]  # ours; many others'; timm's
    name = next((name for name in names if isinstance(name, str)), None)
    encoder = parse_name(name, own_code) if name else None
    if file.is_ours and "config" in file.content:
        return Metadata(encoder, _pixels_of_pretraining(file))
    found = [dict.get(one, "normalize_args") for one in [file.get("lightly_train")] if isinstance(one, dict)]
    if timm and isinstance(file.get("args"), Namespace):
        found.append(vars(file.get("args")))  # --mean and --std of timm's train.py
    found.append(card.get("pretrained_cfg") if encoder else None)
    return Metadata(encoder, next(filter(None, map(_pixels_from_0_to_1, found)), None))


def parse_name(name: str, own_code: bool = False) -> EncoderSpec:
    """Parse the name that a checkpoint gives its network.

    Args:
        name: of an encoder.
        own_code: whether a name with dots may be a user's function. If not, what follows the first dot is timm's name
            of the weights (``resnet50.a1_in1k``) and is left out.
    """
    encoder = parse_encoder(name)
    return encoder if own_code or isinstance(encoder, ResNetShape) else parse_encoder(name.split(".")[0])


def check_agreement(claimed: EncoderSpec | None, found: EncoderSpec, location: str) -> None:
    """Refuse a checkpoint that says that it holds another network than its shapes show.

    Args:
        claimed: what it says, or None.
        found: detected from its shapes.
        location: of the encoder in the file, for the message.

    Raises:
        ValueError: if it does, or if it names a network whose computation shapes do not show.
    """
    if isinstance(claimed, ResNetShape):
        padded_alike = found._replace(same=claimed.same) if isinstance(found, ResNetShape) else found
        if claimed not in (found, padded_alike):
            raise ValueError(f"the checkpoint calls its network {claimed.name!r}, but the weights are a {found}'s")
    elif claimed and claimed.is_own_code:
        raise ValueError(
            f"its encoder is {claimed.name!r}, code of your own, which runs only if you ask for it: add --arch "
            f"{claimed.name}; or if it computes what a {found} does, name its place with --prefix {location}"
        )
    elif claimed and re.match(r"resnet(aa|blur)\d", claimed.name):
        raise ValueError(f"a {claimed} of timm: the names of a {found}, but anti-aliased: Detectron2 cannot compute it")


def pretraining_of(file: CheckpointFile) -> dict | None:
    """What one of our pretraining checkpoints says of its run, by which it is compared with a published row.

    Returns:
        dict: "config", nested; "images" that it learned from; "iterations" done. None for other files.
    """
    if not file.is_ours:
        return None
    try:
        config, images = file.pretraining_config, file.content["run"]["images"]
        return {"config": dict(config), "images": int(images), "iterations": int(file.content["iteration"]) + 1}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _model_card(file: CheckpointFile) -> dict:
    """timm's config.json beside the weights; empty if there is none that can be read: it may be somebody else's."""
    try:
        return file.json_beside("config.json") or {}
    except ValueError:
        return {}


def _pixels_from_0_to_1(config: object) -> Pixels | None:
    """(mean, std), times 255, of a dictionary that has them for pixels from 0 to 1; None of others."""
    if not isinstance(config, dict):
        return None
    pixels = [config.get(key) for key in ("mean", "std")]
    triples = [v for v in pixels if isinstance(v, (list, tuple)) and len(v) == 3]
    if len(triples) < 2 or not all(isinstance(number, (int, float)) for values in triples for number in values):
        return None
    mean, std = (tuple(round(255 * value, 3) for value in values) for values in triples)
    return mean, std


def _pixels_of_pretraining(file: CheckpointFile) -> Pixels:
    """(mean, std) of one of our pretraining checkpoints; raises ValueError if its config has none."""
    try:
        model = file.pretraining_config["MODEL"]
        mean, std = (tuple(map(float, model[f"PIXEL_{what}"])) for what in ("MEAN", "STD"))
        if (len(mean), len(std)) != (3, 3) or not all(std):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("the config in it has no PIXEL_MEAN and PIXEL_STD of three numbers each") from None
    return mean, std

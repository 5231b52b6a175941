"""The mean and std of a network's images: by its project, or by what is said in the file, beside it, or by timm."""

from argparse import Namespace
from typing import Any

import timm

from ..sources.checkpoint_file import CheckpointFile
from ..sources.conventions import Conventions, Pixels
from ..sources.messages import brief
from ..sources.metadata import metadata_of
from .layouts import TimmLayout

TIMM = "timm:"  # before the name of a network in the config of a pretraining


class Claims:
    """What a checkpoint, or config.json beside it, says of its network.

    Attributes:
        name: timm's, as it is there; None: it says none.
        card: timm's config.json; empty: there is none.
        pixels: mean and std of RGB pixels from 0 to 255; None: it says none.
        where: what said the pixels, for messages.
    """

    def __init__(self, file: CheckpointFile) -> None:
        """
        Args:
            file: the checkpoint.

        Raises:
            ValueError: if config.json beside it is timm's, and has no mean and std that can be used.
        """
        card = self.card = _card(file)
        names = [file.get("encoder"), card.get("architecture"), file.get("arch"), file.get("model_name")]
        names = [name.removeprefix(TIMM) for name in names if isinstance(name, str)]
        self.name = next((name for name in names if _is_timms(name)), None)
        self.pixels: Pixels | None = None
        self.where = ""
        if file.is_ours:
            self.pixels, self.where = metadata_of(file).pixels, "its config"
            return
        settings = card.get("pretrained_cfg")
        lightly = file.get("lightly_train")
        options = [
            ("config.json beside it", settings if isinstance(settings, dict) else None),
            ("its lightly_train", lightly.get("normalize_args") if isinstance(lightly, dict) else None),
            ("its args", vars(file.get("args")) if isinstance(file.get("args"), Namespace) else None),
        ]
        for where, values in options:
            if isinstance(values, dict) and (values.get("mean") is not None or values.get("std") is not None):
                self.pixels, self.where = pixels_from_0_to_1(values, where), where
                break


def conventions_of(layout: TimmLayout, claims: Claims, name: str, tagged: str | None) -> Conventions:
    """What a network expects of its images.

    Args:
        layout: whose it is.
        claims: what is said of it.
        name: timm's, without a tag.
        tagged: the same with a tag of weights, as the user named it; None: without.

    Raises:
        ValueError: if nothing says it, or two say it differently.
    """
    said: dict[str, Pixels] = {}
    if layout.conventions:
        said[f"{layout.project}'s"] = layout.conventions[1:3]
    if claims.pixels:
        said[f"{claims.where} says"] = claims.pixels
    if tagged:
        said[f"timm's of {tagged}"] = _of_timm(tagged)
    if not said and (claims.name or layout.name in ("beit", "beitv2")):
        said["timm's"] = _of_timm(claims.name if claims.name and claims.name.split(".")[0] == name else name)
    if not said and layout.name == "lightly-train":
        said["LightlyTrain's default"] = Conventions()[1:3]
    values = list(said.values())
    if any(not _near(value, values[0]) for value in values):
        listed = "; ".join(f"{who} {_shown(value)}" for who, value in said.items())
        raise ValueError(f"the mean and std of its images are contradictory: {listed}; remove or correct what is wrong")
    if not values:
        raise ValueError(
            f"a {name} of which nothing says the mean and std of its images: name its project with --source, or timm's "
            f"weights with --arch {name}.TAG ({', '.join(timm.list_pretrained(f'{name}.*')[:3]) or 'none known'}), or "
            "put timm's config.json beside it"
        )
    return Conventions(mean=values[0][0], std=values[0][1])


def pixels_from_0_to_1(values: dict[str, Any], where: str) -> Pixels:
    """(mean, std) times 255 of a dictionary that has them for pixels from 0 to 1; ValueError if it has not."""
    found = []
    for key in ("mean", "std"):
        three = values.get(key)
        numbers = three if isinstance(three, (list, tuple)) else []
        if len(numbers) != 3 or not all(type(value) in (int, float) and 0 <= value <= 1 for value in numbers):
            raise ValueError(f"{where} has {key} {brief(three)}, expected three numbers of pixels from 0 to 1")
        found.append(tuple(round(255 * value, 3) for value in numbers))
    if not all(found[1]):
        raise ValueError(f"{where} has std {brief(values['std'])}: 0 divides nothing")
    return found[0], found[1]


def _card(file):
    """timm's config.json beside the weights; empty if there is none, or it is somebody else's."""
    try:
        card = file.json_beside("config.json") or {}
    except ValueError:
        return {}
    return card if isinstance(card.get("architecture"), str) else {}


def _is_timms(name):
    return ":" not in name and "/" not in name and timm.is_model(name)


def _of_timm(name):
    """(mean, std) that timm gives with its weights."""
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:
        known = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*"))
        raise ValueError(f"timm has no weights {name}: it has {known or 'none of this network'}") from None
    if cfg is None:
        raise ValueError(f"timm says nothing of the images of {name}")
    return pixels_from_0_to_1({"mean": cfg.mean, "std": cfg.std}, f"timm's {name}")


def _near(one, other):
    return all(abs(a - b) < 0.01 for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def _shown(pixels):
    return f"mean {list(pixels[0])}, std {list(pixels[1])}"

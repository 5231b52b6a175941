"""ResNets of Hugging Face's transformers: folders of ``save_pretrained``, and what the JSON files in them say.

Read in ``modeling_resnet.py`` and ``configuration_resnet.py`` of transformers: a plain ResNet with names of its own
(``search.NAMINGS``), whose config may ask for another activation and for other strides. What timm publishes there has
timm's names, and timm's own config.json (``stated``).
"""

import json
import math
import os
from pathlib import Path

from pretrain.encoders import resnet_shape

from .architecture import short, some
from .layouts import Conventions

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
# What its config's keys are where they are not written, and what Detectron2's ResNet can compute
DEFAULTS = {"hidden_act": "relu", "downsample_in_first_stage": False}
PREPROCESSOR = "preprocessor_config.json"


def weights_file(path):
    """The file with the weights: ``path`` itself, or what transformers would load of a folder.

    Returns:
        tuple: path, and notes for the user.

    Raises:
        ValueError: if it is a folder without one such file; one line without the path.
    """
    if not os.path.isdir(path):
        return path, []
    path = Path(path)
    there = [name for name in WEIGHTS if (path / name).is_file()]
    if there:
        beside = f" ({there[1]} is left)" if there[1:] else ""
        return path / there[0], [f"of the folder {path.name!r}, {there[0]} was read{beside}"]
    if shards := [name for name in WEIGHTS if (path / f"{name}.index.json").exists()]:
        raise ValueError(
            f"a folder whose {shards[0]} is split into several files: save it as one, with transformers' "
            "save_pretrained(folder, max_shard_size='100GB')"
        )
    if gone := [name for name in WEIGHTS if (path / name).is_symlink()]:
        raise ValueError(f"a folder whose {gone[0]} is a link to a file that is not there: download it again")
    if inside := sorted(found for name in WEIGHTS for found in path.glob(f"snapshots/*/{name}") if found.is_file()):
        snapshot = str(inside[0].parent.relative_to(path))
        raise ValueError(f"the hub's cache folder: name the snapshot in it, {snapshot!r}")
    names = sorted(os.listdir(path))
    listed = f"it holds {some(map(repr, names))}" if names else "it is empty"
    raise ValueError(
        f"a folder, expected a checkpoint file, or a folder of transformers with {' or '.join(WEIGHTS)}; {listed}"
    )


def surroundings(path, arch):
    """What a ResNet of transformers expects of its surroundings, by the JSON files beside its weights.

    Args:
        path: of the weights.
        arch: name of the ResNet that they are, by their shapes.

    Returns:
        tuple: Conventions, and notes on what no file says.

    Raises:
        ValueError: if a file says what Detectron2 cannot compute, or what the weights contradict.
    """
    folder, conventions, notes = Path(path).parent, Conventions(), []
    config = _read_json(folder / "config.json")
    if config is None:
        notes.append("no config.json beside it: taken for transformers' defaults, ReLU and strides in the 3x3 convs")
    else:
        conventions = conventions._replace(stride_in_1x1=_checked(config, arch))
    images = _read_json(folder / PREPROCESSOR)
    if images is None:
        notes.append(f"no {PREPROCESSOR} beside it: taken for RGB images with ImageNet's mean and std")
    else:
        mean, std = _pixels(images)
        conventions = conventions._replace(mean=mean, std=std)
    return conventions, notes


def _read_json(path):
    """The object in a JSON file, None without such a file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} beside it cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} beside it holds no JSON object")
    return content


def _checked(config, arch):
    """Whether a config asks for strides in the first 1x1 convs; it must be a plain ResNet's, and that of ``arch``."""
    if isinstance(config.get("backbone_config"), dict):  # of a detector
        config = config["backbone_config"]
    if (kind := config.get("model_type", "resnet")) != "resnet":
        raise ValueError(f"config.json beside it is of a {short(kind)}, not of transformers' 'resnet': refused")
    for key, plain in DEFAULTS.items():
        if (value := config.get(key, plain)) != plain:
            raise ValueError(
                f"config.json beside it has {key} {short(value)}, which Detectron2's ResNet cannot compute"
            )
    shape = resnet_shape(arch)
    found = {
        "layer_type": "bottleneck" if shape.bottleneck else "basic",
        "num_channels": 3,
        "embedding_size": shape.stem,
        "hidden_sizes": [shape.out * 2**k for k in range(4)],
        "depths": list(shape.blocks),
    }
    for key, value in found.items():
        if config.get(key, value) != value:
            said = short(config[key])
            raise ValueError(f"config.json beside it has {key} {said}, but the weights are a {arch}'s: {value}")
    stride_in_1x1 = config.get("downsample_in_bottleneck", False)
    if not isinstance(stride_in_1x1, bool):
        said = short(stride_in_1x1)
        raise ValueError(f"config.json beside it has downsample_in_bottleneck {said}, expected true or false")
    return stride_in_1x1


def _pixels(config):
    """(mean, std), of RGB pixels from 0 to 255, by a preprocessor's config; transformers' defaults for its switches."""
    for key in ("do_flip_channel_order", "rescale_offset", "offset"):
        if config.get(key):
            said = short(config[key])
            raise ValueError(f"{PREPROCESSOR} beside it has {key} {said}, which is not known here: refused")
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    values = {"image_mean": 0, "image_std": 1}
    if config.get("do_normalize", True):
        values = {key: config.get(key) for key in values}
    factors, mean, std = (_three_numbers(value) for value in (factor, *values.values()))
    if not (factors and mean and std) or min(*factors, *std) <= 0:
        said = ", ".join(f"{key} {short(v)}" for key, v in {**values, "rescale_factor": factor}.items())
        raise ValueError(
            f"{PREPROCESSOR} beside it has no three numbers for mean and std ({said}): correct it, or move the "
            "weights away from it for ImageNet's"
        )
    scaled = [[float(f"{v / f:.7g}") for v, f in zip(values, factors, strict=True)] for values in (mean, std)]
    return tuple(map(tuple, scaled))


def _three_numbers(value):
    """Three finite numbers: of a list of them, or of one number for all channels; None if it is neither."""
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return None
    try:
        values = [float(v) for v in values]
    except OverflowError:
        return None
    return values if all(map(math.isfinite, values)) else None

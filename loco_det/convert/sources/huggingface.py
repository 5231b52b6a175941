"""ResNets of Hugging Face's transformers: what the JSON files say that ``save_pretrained`` puts beside the weights.

Read in ``modeling_resnet.py`` and ``configuration_resnet.py`` of transformers: a plain ResNet with names of its own
(``search.NAMINGS``), whose config may ask for another activation and for other strides. What timm publishes there has
timm's names, and timm's own config.json (``metadata``).
"""

import math

from pretrain.encoders import ResNetShape

from .checkpoint_file import CheckpointFile
from .conventions import Conventions
from .messages import brief

# What its config's keys are where they are not written, and what Detectron2's ResNet can compute
DEFAULTS = {"hidden_act": "relu", "downsample_in_first_stage": False}
PREPROCESSOR = "preprocessor_config.json"


def conventions_beside(file: CheckpointFile, shape: ResNetShape) -> tuple[Conventions, list[str]]:
    """What a ResNet of transformers expects of its surroundings, by the JSON files beside its weights.

    Args:
        file: the checkpoint.
        shape: of its ResNet, detected from the weights.

    Returns:
        tuple: Conventions, and notes on what no file says.

    Raises:
        ValueError: if a file says what Detectron2 cannot compute, or what the weights contradict.
    """
    conventions, notes = Conventions(), []
    config = file.json_beside("config.json")
    if config is None:
        notes.append("no config.json beside it: taken for transformers' defaults, ReLU and strides in the 3x3 convs")
    else:
        conventions = conventions._replace(stride_in_1x1=_stride_in_1x1(config, shape))
    images = file.json_beside(PREPROCESSOR)
    if images is None:
        notes.append(f"no {PREPROCESSOR} beside it: taken for RGB images with ImageNet's mean and std")
    else:
        mean, std = _pixels(images)
        conventions = conventions._replace(mean=mean, std=std)
    return conventions, notes


def _stride_in_1x1(config, shape):
    """Whether a config asks for strides in the first 1x1 convs; it must be a plain ResNet's, and of that shape."""
    if isinstance(config.get("backbone_config"), dict):  # of a detector
        config = config["backbone_config"]
    if (kind := config.get("model_type", "resnet")) != "resnet":
        raise ValueError(f"config.json beside it is of a {brief(kind)}, not of transformers' 'resnet': refused")
    for key, plain in DEFAULTS.items():
        if (value := config.get(key, plain)) != plain:
            raise ValueError(
                f"config.json beside it has {key} {brief(value)}, which Detectron2's ResNet cannot compute"
            )
    found = {
        "layer_type": "bottleneck" if shape.bottleneck else "basic",
        "num_channels": 3,
        "embedding_size": shape.stem,
        "hidden_sizes": [shape.out * 2**k for k in range(4)],
        "depths": list(shape.blocks),
    }
    for key, value in found.items():
        if config.get(key, value) != value:
            said = brief(config[key])
            raise ValueError(f"config.json beside it has {key} {said}, but the weights are a {shape}'s: {value}")
    stride_in_1x1 = config.get("downsample_in_bottleneck", False)
    if not isinstance(stride_in_1x1, bool):
        said = brief(stride_in_1x1)
        raise ValueError(f"config.json beside it has downsample_in_bottleneck {said}, expected true or false")
    return stride_in_1x1


def _pixels(config):
    """(mean, std), of RGB pixels from 0 to 255, by a preprocessor's config; transformers' defaults for its switches."""
    for key in ("do_flip_channel_order", "rescale_offset", "offset"):
        if config.get(key):
            said = brief(config[key])
            raise ValueError(f"{PREPROCESSOR} beside it has {key} {said}, which is not known here: refused")
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    values = {"image_mean": 0, "image_std": 1}
    if config.get("do_normalize", True):
        values = {key: config.get(key) for key in values}
    factors, mean, std = (_three_numbers(value) for value in (factor, *values.values()))
    if not (factors and mean and std) or min(*factors, *std) <= 0:
        said = ", ".join(f"{key} {brief(v)}" for key, v in {**values, "rescale_factor": factor}.items())
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

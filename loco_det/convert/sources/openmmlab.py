"""What the config in the "meta" of an OpenMMLab checkpoint says of its network: its pixels, its strides, its colours.

mmengine's projects (MMPretrain, MMSelfSup 1.x, MMDetection 3.x) normalise in the model's ``data_preprocessor``, older
ones (OpenSelfSup, MMSelfSup 0.x, MMClassification) with ``Normalize`` in the pipelines, whose values most configs call
``img_norm_cfg``.
"""

import math
import re

from .conventions import Pixels
from .messages import brief
from .python_config import assignments, entries

PREPROCESSORS = ("data_preprocessor", "preprocess_cfg")  # the second: in the first 1.0 candidates


def openmmlab_pixels(content: object, place: str) -> Pixels | None:
    """Mean and std by the config in a checkpoint's "meta", which also must not say that it is no plain RGB ResNet.

    Args:
        content: what the checkpoint holds.
        place: of the encoder's names, for ``--prefix``.

    Returns:
        tuple: mean, std, of RGB pixels from 0 to 255; None if there is no config, or it does not say.

    Raises:
        ValueError: if the network is another one, or if its pixels are not known for certain.
    """
    meta = dict.get(content, "meta") if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    try:
        found = {pixels for key in ("cfg", "config") if (pixels := _pixels_of(dict.get(meta, key)))}
        if len(found) > 1:
            raise _Unclear(f"has two of them ({_shown(found)})")
    except _Unclear as error:
        raise ValueError(
            f"the mean and std of its images are not certain: the config in its meta {error}; --prefix {place} takes "
            "it with RGB images and ImageNet's: then correct PIXEL_MEAN, PIXEL_STD and FORMAT in the config written"
        ) from None
    return next(iter(found), None)


class _Unclear(ValueError):
    """Why mean and std are not certain, as the end of a sentence on the config."""


def _pixels_of(config):
    """(mean, std) of one config, text or a dictionary; None if it says nothing."""
    if isinstance(config, str):
        try:
            pairs = assignments(config)
        except ValueError as error:
            _check_text(config)
            if re.search(r"\b(mean|std|data_preprocessor|img_norm_cfg)\b", config):
                raise _Unclear(f"cannot be read as Python ({error})") from None
            return None
    elif isinstance(config, dict):
        pairs = list(dict.items(config))
    else:
        return None
    everything = [*((name, value, {}) for name, value in pairs), *entries([value for _, value in pairs])]
    _check_network(everything)
    return _normalisation(pairs, everything)


def _check_text(text):
    """What :func:`_check_network` looks for, in a text that is not Python."""
    if odd := re.search(
        r"style\s*=\s*.caffe|\b(bgr_)?to_rgb\s*=\s*False|rgb_to_bgr\s*=\s*True"
        r"|dilations\s*=\s*\((?!\s*1,\s*1,\s*1,\s*1)[\d,\s]*\)",
        text,
    ):
        raise ValueError(_other_network(odd[0]))


def _check_network(everything):
    """Raise ValueError if a config says what shapes do not show: strides, dilation, epsilon, colours."""
    for key, value, _ in everything:
        caffe = key == "style" and value == "caffe"
        colours = (key, value) in (("to_rgb", False), ("bgr_to_rgb", False), ("rgb_to_bgr", True))
        dilated = key == "dilations" and isinstance(value, list) and any(v != 1 for v in value)
        if caffe or colours or dilated:
            raise ValueError(_other_network(f"{key}={brief(tuple(value)) if dilated else brief(value)}"))
        if key == "backbone" and isinstance(value, dict):
            strides, norm = value.get("strides"), value.get("norm_cfg")
            if isinstance(strides, list) and strides != [1, 2, 2, 2][: len(strides)]:
                raise ValueError(_other_network(f"strides={brief(tuple(strides))}"))
            if isinstance(norm, dict) and norm.get("eps", 1e-5) != 1e-5:
                raise ValueError(_other_network(f"norm_cfg eps={brief(norm['eps'])}"))


def _other_network(what):
    return f"its config has {what}: no plain RGB ResNet, its features would not be these; refused"


def _normalisation(pairs, everything):
    """(mean, std) of the data preprocessor, the model's own before that of the config, as in mmengine's Runner.

    Without one, or if it leaves that to the pipelines, theirs; None if there is neither.
    """
    top = dict(pairs)
    model = top.get("model")
    model = model if isinstance(model, dict) else {}
    named = [where[name] for where in (model, top) for name in PREPROCESSORS if name in where]
    chosen = named[:1] if named and _normalises(named[0]) else []
    if not chosen:  # those of an algorithm's branches, or of a model inside the model
        inside = entries(named[0]) if named else everything
        chosen = [value for key, value, _ in inside if key in PREPROCESSORS and _normalises(value)]
    for one in chosen:
        if not isinstance(one, dict):
            raise _Unclear(f"has a data_preprocessor that is {brief(one)}")
        if True not in (one.get("to_rgb"), one.get("bgr_to_rgb")):
            raise _Unclear("has a data_preprocessor without to_rgb or bgr_to_rgb, so that its images may have been BGR")
    pixels = _agreed({_three(one, "data_preprocessor", 1) for one in chosen}) or _of_pipelines(everything)
    if named and not pixels:
        raise _Unclear("has a data_preprocessor without mean and std")
    return pixels


def _normalises(preprocessor):
    """Whether it has a mean or std, or may have one."""
    if not isinstance(preprocessor, dict):
        return preprocessor is not None
    return any(preprocessor.get(key) is not None for key in ("mean", "std"))


def _of_pipelines(everything):
    """(mean, std) of the transforms of the images: all that normalise have to agree."""
    # torchvision's ToTensor, as OpenSelfSup has it, divides by 255; OpenMMLab's own has keys, and does not
    transforms = [(inside.get("type"), inside) for key, _, inside in everything if key == "type"]
    divided = any(
        kind == "torchvision/ToTensor" or (kind == "ToTensor" and "keys" not in inside) for kind, inside in transforms
    )
    found = [inside for kind, inside in transforms if isinstance(kind, str) and re.fullmatch(r"(\w+/)?Normalize", kind)]
    found += [value for key, value, _ in everything if key == "img_norm_cfg"]
    pixels = set()
    for one in found:
        mean, std = _three(one, "Normalize", 255 if divided else None)
        pixels.add((mean, std))
    return _agreed(pixels)


def _agreed(pixels):
    if len(pixels) > 1:
        raise _Unclear(f"has several of them ({_shown(pixels)})")
    return next(iter(pixels), None)


def _shown(pixels):
    return "; ".join(f"mean {list(mean)}, std {list(std)}" for mean, std in sorted(pixels)[:3])


def _three(config, name, scale):
    """(mean, std) of a dictionary with these keys, times ``scale``; None: 255 if they are of pixels from 0 to 1."""
    config = config if isinstance(config, dict) else {}
    mean, std = (_numbers(config.get(key)) for key in ("mean", "std"))
    if mean is None or std is None or min(std) <= 0:
        raise _Unclear(f"has a {name} with mean {brief(config.get('mean'))} and std {brief(config.get('std'))}")
    small = max(std) < 1
    if (scale == 1 and small) or (scale == 255 and max(map(abs, (*mean, *std))) > 1):
        of = "from 0 to 255" if scale == 1 else "that ToTensor has divided by 255"
        raise _Unclear(f"has a {name} with mean {list(mean)} and std {list(std)}, which cannot be of pixels {of}")
    scale = scale or (255 if small else 1)
    return tuple(tuple(float(f"{scale * value:.7g}") for value in values) for values in (mean, std))


def _numbers(value):
    """Three numbers of a list of three, or of one for all channels; None if it is neither."""
    if not isinstance(value, (list, tuple)) or len(value) not in (1, 3):
        return None
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value):
        return None
    try:
        numbers = tuple(float(number) for number in value)
    except OverflowError:
        return None
    return (numbers * 3)[:3] if all(map(math.isfinite, numbers)) else None

"""torchvision's names of a ResNet's parameters <-> Detectron2's names."""

import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")
_NAME = re.compile(
    r"(?:layer(?P<layer>[1-4])\.(?P<block>\d+)\.)?"
    r"(?:conv(?P<conv>[1-3])|bn(?P<bn>[1-3])|(?P<shortcut>downsample)\.(?P<part>[01]))"
    r"\.(?P<parameter>weight|bias|running_mean|running_var|num_batches_tracked)"
)
_DETECTRON2 = re.compile(
    r"(?:stem|res(?P<stage>[2-5])\.(?P<block>\d+))"
    r"\.(?:conv(?P<conv>[1-3])|(?P<shortcut>shortcut))(?P<norm>\.norm)?"
    r"\.(?P<parameter>weight|bias|running_mean|running_var|num_batches_tracked)"
)


def to_detectron2_name(name: str) -> str:
    """Translate one name.

    Detectron2 counts stages from 2 (the stem is stage 1) and keeps a norm inside its convolution:
    ``layer1.0.bn2.weight`` is ``res2.0.conv2.norm.weight`` and ``bn1.weight`` is ``stem.conv1.norm.weight``.

    Args:
        name: a key of a torchvision ResNet's state dict, without ``fc``.

    Raises:
        ValueError: if a ResNet encoder has no parameter of that form.
    """
    match = _NAME.fullmatch(name)
    # The stem is one convolution and its norm; a shortcut exists in a block only.
    if not match or (not match["layer"] and not name.startswith(("conv1.", "bn1."))):
        raise ValueError(f"{name!r} is not the name of a torchvision ResNet encoder's parameter")
    place = f"res{int(match['layer']) + 1}.{match['block']}" if match["layer"] else "stem"
    is_norm = match["bn"] or match["part"] == "1"
    module = "shortcut" if match["shortcut"] else f"conv{match['conv'] or match['bn']}"
    return f"{place}.{module}{'.norm' if is_norm else ''}.{match['parameter']}"


def to_detectron2(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a torchvision-style state dict for Detectron2's ``build_resnet_backbone``.

    Args:
        state_dict: name -> value; values are passed through untouched.

    Returns:
        dict: Detectron2's name, without ``backbone.bottom_up.`` -> the same value, in the same order.

    Raises:
        ValueError: if a name is not one of a ResNet encoder's.
    """
    return {to_detectron2_name(name): value for name, value in state_dict.items()}


def to_torchvision_name(name: str) -> str:
    """Translate one name back: the inverse of :func:`to_detectron2_name`.

    Args:
        name: a parameter of Detectron2's ResNet, without ``backbone.bottom_up.``.

    Raises:
        ValueError: if Detectron2's ResNet has no parameter of that form.
    """
    match = _DETECTRON2.fullmatch(name)
    if not match or (not match["stage"] and (match["shortcut"] or match["conv"] != "1")):
        raise ValueError(f"{name!r} is not the name of a parameter of Detectron2's ResNet")
    place = f"layer{int(match['stage']) - 1}.{match['block']}." if match["stage"] else ""
    if match["shortcut"]:
        module = "downsample.1" if match["norm"] else "downsample.0"
    else:
        module = f"{'bn' if match['norm'] else 'conv'}{match['conv']}"
    return f"{place}{module}.{match['parameter']}"

"""Which encoder a state dict holds, detected from its names and shapes; anything else is refused with what was seen."""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pretrain.encoders import BUILDERS, Encoder, EncoderSpec, NamedEncoder, ResNetShape, build_encoder
from pretrain.encoders.resnet import BLOCKS

from .messages import first_few

COUNTER = "num_batches_tracked"  # BatchNorm's count of training steps: not a weight, and absent from older checkpoints
WIDEST = 4096  # output channels of res2: a limit to what a file can ask for in memory; SimCLR's 4x has 1024
# Networks whose names begin as a ResNet's do, by what only they have; first match first.
RELATIVES = {
    r"(cls_token|class_token|patch_embed\.|conv_proj\.|pos_embed)": "a vision transformer",
    r"conv1\.0\.": "a ResNet-C, -D or -S, with a deep stem of several convs, as timm's resnet50d",
    r"regnet\.": "a RegNet",
    r"encoder\.stages\.\d+\.(layers|blocks)\.": "another network of transformers than its ResNet (ConvNeXt, BiT, ...)",
    r"stages\.\d": "a ResNet v2 (pre-activation) or another network of timm",
    r"stem\.\d+\.": "a ResNet-C or -D, with a deep stem of several convs, as MMPretrain's ResNetV1d",
    r"downsample\.[2-9]\.": "a ResNet-D, with a pool in its shortcuts",
    r"layer\d\.\d+\.se\.": "a ResNet with squeeze and excitation (seresnet, ecaresnet, resnetrs)",
    r"layer\d\.\d+\.conv2\.(attn|conv\.|fc)": "a ResNet with selective kernels or split attention",
    r"layer\d\.\d+\.(attn|aa|drop_block)": "a ResNet with attention or anti-aliasing",
    r"features\.norm0|denseblock": "a DenseNet",
}


@functools.lru_cache(maxsize=4)
def reference(encoder: EncoderSpec) -> dict[str, torch.Tensor]:
    """The complete state dict of an encoder as shapes and types only: meta tensors, no memory, no random numbers."""
    return skeleton(encoder).state_dict()


def skeleton(encoder: EncoderSpec) -> Encoder:
    """An encoder on the meta device: without memory or random numbers, to be given its weights."""
    if isinstance(encoder, NamedEncoder) and encoder.is_own_code:  # which may compute with its tensors
        return build_encoder(encoder)
    with torch.device("meta"), Undrawn():
        return build_encoder(encoder)


class Undrawn(TorchFunctionMode):
    """A context for networks on the meta device, which have no values: none are drawn.

    torch would import its compiler for it, which takes as long as a conversion.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))


def infer_encoder(state_dict: Mapping[str, torch.Tensor]) -> EncoderSpec:
    """Detect which encoder a state dict belongs to, and that it is that encoder, whole and with nothing else.

    Args:
        state_dict: name -> tensor: torchvision's names without ``fc``, or those of another encoder of ``pretrain``.
            ``num_batches_tracked`` may be absent.

    Returns:
        ResNetShape of any width, or NamedEncoder with a name in ``BUILDERS``.

    Raises:
        ValueError: in one line, what was seen and what was expected.
    """
    if "res2.0.0.0.weight" in state_dict:  # a StageEncoder's names; they differ from one to the other
        encoder = max(map(NamedEncoder, BUILDERS), key=lambda one: len(set(state_dict) & set(reference(one))))
    else:
        encoder = _resnet_by_shapes(state_dict)
    if found := faults(state_dict, reference(encoder)):
        raise ValueError(f"not a {encoder}, though it begins as one: {'; '.join(found)}")
    return encoder


def faults(state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """What is missing, left over or of another shape, a text each.

    Args:
        state_dict: name -> tensor; ``num_batches_tracked`` may be absent.
        expected: the same of the network.
    """
    missing = [name for name in expected if name not in state_dict and not name.endswith(COUNTER)]
    extra = [name for name in state_dict if name not in expected]
    shapes = [
        f"{name} is {_size(state_dict[name])} and should be {_size(tensor)}"
        for name, tensor in expected.items()
        if name in state_dict and state_dict[name].shape != tensor.shape
    ]
    found = []
    if missing:
        found.append(f"{len(missing)} missing ({first_few(missing)})")
    if extra:
        found.append(f"{len(extra)} left over ({first_few(extra)})")
    if shapes:
        found.append(f"{len(shapes)} of another shape ({first_few(shapes)})")
    return found


def relative(names: Collection[str]) -> str | None:
    """The network that looks like a ResNet but is none, in a line for the user, or None."""
    for pattern, network in RELATIVES.items():
        if name := next((name for name in names if re.search(rf"(^|\.)({pattern})", name)), None):
            return f"{network} ({name}), which Detectron2's ResNet cannot compute"
    return None


def _resnet_by_shapes(state_dict):
    """The ResNetShape by the numbers of blocks and the widths of the first ones; raises ValueError if there is none."""
    if network := relative(state_dict):
        raise ValueError(network)
    if "conv1.weight" not in state_dict:
        raise ValueError(
            "expected a torchvision-style ResNet (conv1.weight, layer1.0.conv1.weight, ...), "
            f"saw {len(state_dict)} other names ({first_few(state_dict)})"
        )
    if "bn1.running_mean" not in state_dict:
        raise ValueError("no bn1.running_mean: GroupNorm, or BatchNorm without its statistics, cannot be converted")
    stem = state_dict["conv1.weight"].shape
    if len(stem) != 4 or stem[1:] != (3, 7, 7):
        small = ", as in ResNets for CIFAR" if stem[2:] == (3, 3) else ""
        raise ValueError(f"conv1.weight is {_size(state_dict['conv1.weight'])}, expected a stem of Nx3x7x7{small}")
    depth = _depth(state_dict)
    bottleneck = depth >= 50
    first = [f"layer1.0.conv{i}.weight" for i in ((2, 3) if bottleneck else (1, 2))]
    for name in first:
        if name not in state_dict or state_dict[name].dim() != 4 or 0 in state_dict[name].shape:
            raise ValueError(f"{name} is missing or no 4-dimensional weight")
    middle, last = (state_dict[name] for name in first)
    out = last.shape[0]
    groups, width = 1, out
    if bottleneck:
        width = middle.shape[1]  # a grouped conv holds the input channels of one group
        groups = max(1, middle.shape[0] // width)
    shape = ResNetShape(depth, stem[0], groups, width, out)
    if out > WIDEST or not shape.is_buildable:
        raise ValueError(
            f"a ResNet-{shape.depth} with {out} channels in res2 and {groups} groups of {width}, which cannot be built"
        )
    return shape


def _depth(state_dict):
    """18, 34, 50, 101 or 152, by the kind and the numbers of blocks; raises ValueError for others."""
    blocks = [set(), set(), set(), set()]
    for name in state_dict:
        if match := re.match(r"layer([1-4])\.(\d+)\.", name):
            blocks[int(match[1]) - 1].add(match[2])
    bottleneck = any(re.match(r"layer\d\.\d+\.conv3\.", name) for name in state_dict)
    counts = tuple(len(indices) for indices in blocks)
    depths = [depth for depth, known in BLOCKS.items() if known == counts and (depth >= 50) == bottleneck]
    if not depths and counts[3] == 0:
        raise ValueError("no layer4 (res5): that of a C4 detector is in its ROI head, which cannot be converted")
    if not depths:
        known = ", ".join(f"{_kind(d >= 50)} {'-'.join(map(str, n))} (resnet{d})" for d, n in BLOCKS.items())
        raise ValueError(f"saw a ResNet of {_kind(bottleneck)} {'-'.join(map(str, counts))} blocks, expected {known}")
    return depths[0]


def _kind(bottleneck):
    return "bottleneck" if bottleneck else "basic"


def _size(tensor):
    return "x".join(map(str, tensor.shape)) or "a scalar"

"""Where in a checkpoint there are encoders: in which dictionary, behind which prefix, whatever project wrote it."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from pretrain.files.stand_ins import PickledArray

from ..detectron2_names import to_torchvision_name

# What wrappers put into names: DataParallel and DDP, torch.compile, FSDP, activation checkpointing, Lightning Fabric.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
DEEPEST = 6  # dictionaries within dictionaries; VISSL's weights are in the fifth


class Naming(NamedTuple):
    """A way to name a ResNet's parameters.

    Attributes:
        anchor: end of a name that every encoder so named has; what comes before it is the encoder's prefix.
        part: pattern of the names, behind the prefix, that belong to the encoder.
        rename: such a name -> torchvision's.
    """

    anchor: str
    part: str
    rename: Callable[[str], str]


def _from_children(name):
    """``nn.Sequential(*list(resnet.children())[:-1])`` has positions for names; ReLU and pool have no weights."""
    child, rest = name.split(".", 1)
    return {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}[child] + "." + rest


def _from_simclrv2(name):
    """Separius/SimCLRv2-Pytorch: positions, an nn.Sequential for each norm with its ReLU, blocks in ``blocks``."""
    if re.search(r"main_conv|mixing_conv", name):
        raise ValueError(f"SimCLR v2 with selective kernels ({name}), which Detectron2's ResNet cannot compute")
    if match := re.fullmatch(r"net\.0\.(0|1\.0)\.(\w+)", name):
        return f"{'conv1' if match[1] == '0' else 'bn1'}.{match[2]}"
    if match := re.fullmatch(r"net\.([1-4])\.blocks\.(\d+)\.(projection\.shortcut|projection\.bn\.0)\.(\w+)", name):
        return f"layer{match[1]}.{match[2]}.downsample.{int('bn' in match[3])}.{match[4]}"
    if match := re.fullmatch(r"net\.([1-4])\.blocks\.(\d+)\.net\.([0-5])(\.0)?\.(\w+)", name):
        k = int(match[3])
        return f"layer{match[1]}.{match[2]}.{'bn' if k % 2 else 'conv'}{k // 2 + 1}.{match[5]}"
    raise ValueError(f"{name!r} is not a name of SimCLRv2-Pytorch's ResNet")


_HUGGINGFACE = re.compile(
    r"(?:embedder\.embedder|encoder\.stages\.(?P<stage>\d)\.layers\.(?P<block>\d+)\.(?:layer\.(?P<conv>[0-2])|shortcut))"
    r"\.(?P<part>convolution|normalization)\.(?P<parameter>\w+)"
)


def _from_huggingface(name):
    """transformers' ResNetModel: ``embedder`` for the stem, ``convolution`` and ``normalization`` in each layer."""
    match = _HUGGINGFACE.fullmatch(name)
    if re.match(r"embedder\.embedder\.\d", name):
        raise ValueError(f"RT-DETR's ResNet-D, with a deep stem ({name}), which Detectron2's ResNet cannot compute")
    if not match:
        raise ValueError(f"{name!r} is not a name of transformers' ResNet")
    conv = match["part"] == "convolution"
    if not match["stage"]:
        return f"{'conv1' if conv else 'bn1'}.{match['parameter']}"
    module = f"downsample.{int(not conv)}"
    if match["conv"]:
        module = f"{'conv' if conv else 'bn'}{int(match['conv']) + 1}"
    return f"layer{int(match['stage']) + 1}.{match['block']}.{module}.{match['parameter']}"


NAMINGS = {
    "torchvision": Naming("layer1.0.conv1.weight", r"(conv1|bn1|layer\d)\.", str),
    "children": Naming("4.0.conv1.weight", r"[014567]\.", _from_children),
    "detectron2": Naming("res2.0.conv1.weight", r"(stem\.conv1|res\d)\.", to_torchvision_name),
    "simclrv2": Naming("net.1.blocks.0.net.0.weight", r"net\.", _from_simclrv2),
    "huggingface": Naming(
        "encoder.stages.0.layers.0.layer.0.convolution.weight", r"(embedder|encoder)\.", _from_huggingface
    ),
    "pretrain": Naming("res2.0.0.0.weight", r"res\d\.", str),  # PResNet-50 and ShuffleNet v2-50
}


class Found(NamedTuple):
    """An encoder in a checkpoint.

    Attributes:
        location: "keys/of/dictionaries/prefix.": ``state_dict/encoder_q.``.
        naming: a key of ``NAMINGS``.
        weights: the dictionary's names, without wrappers -> values.
        prefix: of the encoder's names among them.
        written: the same as it is in the file, with the parts of wrappers: what a user sees there.
    """

    location: str
    naming: str
    weights: dict
    prefix: str
    written: str

    def split(self) -> tuple[dict[str, str], list[str], list[str]]:
        """Divide the dictionary's names.

        Returns:
            tuple: dict of torchvision's name -> the encoder's own, without prefix; list of the other names behind the
            prefix; and list of all other names.
        """
        naming, parts, inside, outside = NAMINGS[self.naming], {}, [], []
        for name in self.weights:
            rest = name.removeprefix(self.prefix)
            if not name.startswith(self.prefix):
                outside.append(name)
            elif re.match(naming.part, rest):
                parts[naming.rename(rest)] = rest
            else:
                inside.append(rest)
        return parts, inside, outside


def find_encoders(content: object) -> list[Found]:
    """All encoders in a checkpoint.

    Args:
        content: what the file holds: nested dictionaries with state dicts in them (modules count as theirs).

    Returns:
        list of Found.

    Raises:
        ValueError: if two names are one without their wrappers, or if the file has FSDP's flat parameters.
    """
    found = []
    for path, weights, written in state_dicts(content):
        for naming, (anchor, _, _) in NAMINGS.items():
            for name in weights:
                if name == anchor or name.endswith(f".{anchor}"):
                    prefix = name[: -len(anchor)]
                    if naming != "children" or f"{prefix}0.weight" in weights:
                        # A wrapper within the encoder's own names leaves no prefix as it is in the file
                        whole = written[name].removesuffix(anchor) if written[name].endswith(anchor) else prefix
                        found.append(Found("/".join([*path, prefix]), naming, weights, prefix, whole))
    return found


def state_dicts(
    content: object, path: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], dict, dict]]:
    """Yield the dictionaries in a checkpoint that hold tensors or arrays, each once.

    Yields:
        tuple: path, its place: keys of dictionaries; weights: names without wrappers -> values; written: the same names
        -> those in the file.
    """
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict) or len(path) > DEEPEST or id(content) in (seen or ()):
        return
    seen = seen or set()
    seen.add(id(content))
    weights, written = {}, {}
    for name, value in dict.items(content):  # a pickle can give an OrderedDict an attribute of that name
        value = value.array if isinstance(value, PickledArray) else value
        if isinstance(name, str) and isinstance(value, (torch.Tensor, np.ndarray)):
            if "flat_param" in name:
                raise ValueError(f"holds FSDP's flat parameters ({name}): save a full state dict where it was trained")
            short = without_wrappers(name)
            if short in weights:
                raise ValueError(f"holds {short} twice, once as {name}: save one network's state dict alone")
            weights[short], written[short] = value, name
    if weights:
        yield path, weights, written
    for key, value in dict.items(content):
        yield from state_dicts(value, (*path, name_of(key)), seen)


def without_wrappers(name: str) -> str:
    """A name without the parts that wrappers put into it: ``module.encoder.`` is ``encoder.``."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def name_of(key: object) -> str:
    """A dictionary's key in words; a key of another kind could be nested without end."""
    return str(key) if isinstance(key, (str, int)) else type(key).__name__

"""A checkpoint file -> one encoder's state dict: the right network of the file, whole, in float32, checked."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pretrain.encoders import resnet_shape
from pretrain.files.safe_load import read
from pretrain.files.text import for_terminal

from . import huggingface
from .architecture import COUNTER, infer_arch, reference, relative, some
from .choose import choose
from .huggingface import weights_file
from .layouts import Conventions
from .openmmlab import openmmlab_pixels
from .stated import agree, detectron2_config, detectron2_conventions, pretraining_of, stated_by


@dataclass
class Source:
    """What a checkpoint was found to be.

    Attributes:
        path: of the file; if a folder was named, of that in it.
        arch: name of the encoder, for ``pretrain.encoders.build_encoder``.
        layout: which project's it is, a name of ``layouts.LAYOUTS`` or "prefix".
        project: the same in words.
        location: where in the file it was: "keys/of/dictionaries/prefix.".
        names: of the state dict -> the file's, without prefix; without the counters that the file did not have.
        conventions: what the network expects of its surroundings.
        dropped: first part of the other names beside it (``fc``, ``projector``) -> how many there were.
        notes: what the user should know, a line each.
        pretraining: as :func:`stated.pretraining_of` returns it.
    """

    path: Path
    arch: str
    layout: str
    project: str
    location: str
    names: dict
    conventions: Conventions
    dropped: dict
    notes: list = field(default_factory=list)
    pretraining: dict | None = None


def load_source(path, arch="auto", source="auto", ema=False, prefix=None, unsafe=False, config_file=None):
    """Read the encoder of a checkpoint.

    Args:
        path: the file: .pth, .pt, .tar, .ckpt, .safetensors, .pkl, .npz; or a folder of Hugging Face's transformers.
        arch: the encoder it must hold, a name for ``pretrain.encoders.build_encoder``, or "auto".
        source: the layout it must have, a name of ``layouts.LAYOUTS``, or "auto".
        ema: take the network of the moving average (momentum, key, target, teacher).
        prefix: of the encoder's names as they are in the file, for a project without a layout.
        unsafe: unpickle whatever is in the file, which can run code that it brings along.
        config_file: of the run, for Detectron2's checkpoints; None: the ``config.yaml`` beside the file.

    Returns:
        tuple: Source, and the state dict: names of ``pretrain``'s encoder (a ResNet's are torchvision's) -> tensors on
        the CPU, complete, float32 but for BN's counters.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or has no such encoder; one line that begins with the path.
    """
    try:
        path, notes = weights_file(path)
        content = read(path, unsafe)
        layout, found, has_ema = choose(content, source, ema, prefix, path)
        names, inside, outside = found.split()
        heads = layout.heads or r"(?!)"
        if odd := [name for name in inside if not re.match(heads, name)]:
            raise ValueError(
                relative(odd)
                or f"{len(odd)} names in its encoder at {found.location!r} that no plain ResNet has ({some(odd)}): it "
                "may compute something else, refused; if you know that it does not, save the ResNet's state dict alone"
            )
        if config_file and layout.conventions:
            raise ValueError(f"laid out as {layout.name}: --config-file is for checkpoints of Detectron2 only")
        parts = {name: _tensor(name, found.weights[found.prefix + old]) for name, old in names.items()}
        found_arch = infer_arch(parts)
        conventions, stated, unsaid = _surroundings(content, path, layout, found, found_arch, config_file)
        if layout.same or (stated and stated.endswith("_same")):
            found_arch += "_same"
        agree(stated, found_arch, found.location if layout.name in ("loco-det", "detectron2") else "")
        shape = resnet_shape(found_arch)
        if not (shape and shape.bottleneck):
            conventions = conventions._replace(stride_in_1x1=False)  # of no meaning to blocks of another kind
        if arch not in ("auto", found_arch):
            raise ValueError(f"this is a {found_arch}, not the {arch} that was asked for")
        state_dict, changed = _complete(parts, found_arch)
        notes += [*unsaid, *changed]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(for_terminal(f"{path}: {error}")) from None
    if has_ema:
        notes.append("the file has the network of a moving average (EMA, teacher), too: --ema takes that one")
    dropped = Counter(name.split(".")[0] for name in [*inside, *outside])
    return Source(
        path=Path(path),
        arch=found_arch,
        layout=layout.name,
        project=layout.project,
        location=found.location,
        names=names,
        conventions=conventions,
        dropped=dict(dropped),
        notes=notes,
        pretraining=pretraining_of(content),
    ), state_dict


def _surroundings(content, path, layout, found, arch, config_file):
    """What the network expects of its surroundings, by what the checkpoint says, the files beside it, and its layout.

    Returns:
        tuple: Conventions; name of the network as the checkpoint or a file beside it states it, or None; and notes.
    """
    named = layout.name == "prefix"  # by the user, who knows the file better than its contents tell
    timm = layout.name in ("timm", "torchvision")  # its weights on the hub are bare
    stated, pixels = (None, None) if named else stated_by(content, path, timm)
    if layout.conventions is None:
        config = detectron2_config(content, path, config_file)
        return detectron2_conventions(config), config["MODEL"].get("ENCODER") or stated, []
    if found.naming == "huggingface":
        conventions, notes = huggingface.surroundings(path, arch)
        return conventions, stated, notes
    if not named and layout.name != "loco-det":
        pixels = openmmlab_pixels(content, found.written or found.location) or pixels
    if pixels:
        return layout.conventions._replace(mean=pixels[0], std=pixels[1]), stated, []
    return layout.conventions, stated, []


def _tensor(name, value):
    """A tensor or an array as a dense tensor of the CPU with data of its own; raises ValueError for others."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
            raise ValueError(f"{name} holds {value.dtype} values, expected floating point")
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=False))
    if value.device.type != "cpu" or value.layout != torch.strided or value.is_nested:
        raise ValueError(f"{name} is a {value.layout} tensor on {value.device}, expected a dense one with data")
    if not (value.is_floating_point() or name.endswith(COUNTER)):
        raise ValueError(f"{name} holds {value.dtype} values, expected floating point")
    return value


def _complete(parts, arch):
    """Give every tensor torchvision's type and order, and add the counters of a checkpoint that has none.

    Half and double precision become float32. A missing ``num_batches_tracked`` becomes 0, as torch itself reads such
    files. All are kept because of Detectron2's two frozen norms: BatchNorm frozen by FREEZE_AT, as in our recipes,
    reports missing keys without them, while NORM: FrozenBN ignores them but for a message about unexpected keys.

    Returns:
        tuple: the state dict, and notes on what was changed.
    """
    complete, broken, types = {}, [], Counter()
    for name, meta in reference(arch).items():
        tensor = parts.get(name)
        if tensor is None:
            tensor = torch.zeros(meta.shape)
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ValueError(f"{name} has fewer values than its shape ({tuple(tensor.shape)}) says")
        if not name.endswith(COUNTER) and tensor.dtype != meta.dtype:
            types[str(tensor.dtype).removeprefix("torch.")] += 1
        tensor = complete[name] = tensor.detach().to(meta.dtype).contiguous()
        if not torch.isfinite(tensor).all():
            broken.append(name)
    if broken:
        raise ValueError(f"NaN or infinite values in {len(broken)} tensors ({some(broken)})")
    return complete, [f"{count} tensors were {kind}, and are now float32" for kind, count in types.items()]

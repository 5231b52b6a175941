"""A checkpoint file -> its layout -> the weights of one network of timm: whole, checked, and with timm's names."""

import re
from collections import Counter
from typing import NamedTuple

import torch
from torch import nn

from pretrain.encoders import NamedEncoder

from ...modeling.timm.network import build_network
from ..sources.architecture import COUNTER, Undrawn
from ..sources.checkpoint_file import CheckpointFile
from ..sources.messages import first_few
from ..sources.metadata import pretraining_of
from ..sources.source_type import Source
from ..sources.weights import dense_tensor
from .choice import chosen_network
from .matching import is_other, name_of_network, renamed, skeleton_of
from .pixels import TIMM, Claims, conventions_of
from .search import FoundNetwork, find_named, find_networks, foreign_network, other_dictionaries
from .settings import refuse_settings

# Top-level keys of training scripts beside the network's, whose tensors are no network's
TRAINING = re.compile(
    r"(optimizer(_states|s)?|(fp16_|amp_|grad_)?scaler|amp|(lr_)?schedulers?|schedule|callbacks|loops"
    r"|hyper_parameters|ema|(dino|ibot)_loss|criterion|loss|epoch|iteration|rng_state)$"
)
NETWORKS = re.compile(r"(student|teacher|model|model_ema|state_dict|state_dict_ema|module)$")


class TimmWeights(NamedTuple):
    """The weights of a network, twice.

    Attributes:
        found: the network as it is in the file.
        original: the file's names, without prefix and without what is left out -> tensors.
        weights: timm's names -> the same, float32.
    """

    found: FoundNetwork
    original: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]


def load_network(
    file: CheckpointFile, arch: str = "auto", source: str = "auto", ema: bool = False, prefix: str | None = None
) -> tuple[Source, TimmWeights] | None:
    """The network of a checkpoint, if it has one that timm can compute.

    Args:
        file: the checkpoint.
        arch: timm's name of the network that it must hold, perhaps with a tag of weights; or "auto".
        source: the layout that it must have, a name of ``layouts.TIMM_LAYOUTS``; or "auto".
        ema: take the network of the moving average (momentum, key, target, teacher).
        prefix: of the network's names in the file, for a project without a layout.

    Returns:
        The source, whose encoder has timm's name, and the weights; None if the file has no such network.

    Raises:
        ValueError: if it has one that cannot be converted; one line without the path.
    """
    arch, claims = arch.removeprefix(TIMM), Claims(file)
    networks = find_networks(file.content)
    if not networks and (name := arch if is_other(arch) else claims.name):
        with torch.device("meta"), Undrawn():
            networks = find_named(file.content, build_network(name).state_dict())
    if not networks:
        if foreign := foreign_network(file.content):
            raise ValueError(foreign)
        return None
    layout, found, has_ema = chosen_network(
        networks, file, arch if arch != "auto" else claims.name, source, ema, prefix
    )
    if file.config_file:
        raise ValueError(f"laid out as {layout.name}: --config-file is for checkpoints of Detectron2 only")
    original, dropped = _divided(layout, found, file)
    if layout.layer_scale and not any(re.search(r"\.(ls1\.gamma|gamma_1)$", key) for key in original):
        raise ValueError(f"no layer scale (blocks.0.ls1.gamma), which {layout.project} has: it was dropped")
    name, tagged = name_of_network(found, layout, claims.name, arch, source, original)
    refuse_settings(file, claims.card, name)
    network = skeleton_of(name, original)
    weights, unused = renamed(original, found.family, name, network)
    if unused:
        dropped["behind the last map"] = unused
    notes = list(file.notes)
    if has_ema:
        notes.append("the file has the network of a moving average (EMA, teacher), too: --ema takes that one")
    weights = _float32(weights, network, notes)
    conventions = conventions_of(layout, claims, name, tagged)
    return Source(
        path=file.path,
        encoder=NamedEncoder(name),
        layout=layout.name,
        project=layout.project,
        location=found.location,
        names={},
        conventions=conventions,
        dropped=dropped,
        notes=notes,
        pretraining=pretraining_of(file),
    ), TimmWeights(found, original, weights)


def _divided(layout, found, file):
    """The tensors of the network, and how many of each named group are left out.

    Raises:
        ValueError: if a name is neither the network's nor in a group.
    """
    original, dropped, odd = {}, Counter(), []
    for name, value in found.weights.items():
        group = next((group for group, pattern in layout.inside.items() if re.match(pattern, name)), None)
        if group:
            dropped[group] += 1
        else:
            original[name] = value
    for name in found.beside:
        group = next((group for group, pattern in layout.beside.items() if re.match(pattern, name)), None)
        if group:
            dropped[group] += 1
        else:
            odd.append(name)
    if odd:
        raise ValueError(
            f"{len(odd)} names beside its network at {found.location!r} that {layout.project} does not have "
            f"({first_few(odd)}): they may be computed, refused; if they are not, save the network's state dict alone"
        )
    for key, count in other_dictionaries(file.content, found.path).items():
        if not TRAINING.match(key):
            if not NETWORKS.match(key) and key != "the top":
                raise ValueError(f"{count} tensors in {key!r}, which {layout.project} does not have: refused")
            dropped[f"{key}'s"] += count
    return {name: dense_tensor(name, value) for name, value in original.items()}, dict(dropped)


def _float32(weights, network: nn.Module, notes):
    """The same as contiguous float32 of the CPU, finite; with the counters that a file may lack."""
    expected, result, broken = network.state_dict(), {}, []
    types: Counter[str] = Counter()
    for name, meta in expected.items():
        tensor = weights.get(name)
        if tensor is None:  # a counter, by ``faults``
            tensor = torch.zeros(meta.shape, dtype=meta.dtype)
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ValueError(f"{name} has fewer values than its shape ({tuple(tensor.shape)}) says")
        if not name.endswith(COUNTER) and tensor.dtype != meta.dtype:
            types[str(tensor.dtype).removeprefix("torch.")] += 1
        tensor = result[name] = tensor.detach().to(meta.dtype).contiguous()
        if not torch.isfinite(tensor).all():
            broken.append(name)
    if broken:
        raise ValueError(f"NaN or infinite values in {len(broken)} tensors ({first_few(broken)})")
    notes += [f"{count} tensors were {kind}, and are now float32" for kind, count in types.items()]
    return result

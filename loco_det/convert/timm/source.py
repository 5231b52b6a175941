"""A checkpoint file -> its layout -> the weights of one network of timm: whole, checked, and with timm's names."""

import re
from collections import Counter
from typing import NamedTuple

import timm
import torch
from torch import nn

from pretrain.encoders import BUILDERS, NamedEncoder, parse_encoder

from ...modeling.timm.network import build_network, is_plain, levels_of
from ..sources.architecture import COUNTER, Undrawn, faults
from ..sources.checkpoint_file import CheckpointFile
from ..sources.messages import first_few
from ..sources.metadata import pretraining_of
from ..sources.search import name_of
from ..sources.source_type import Source
from ..sources.weights import dense_tensor
from .layouts import TIMM_LAYOUTS, TimmLayout
from .names import TABLE, to_timm
from .pixels import TIMM, Claims, conventions_of
from .search import FoundNetwork, find_named, find_networks, foreign_network, other_dictionaries
from .variants import candidates

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
    if not networks and (name := arch if _is_other(arch) else claims.name):
        with torch.device("meta"), Undrawn():
            networks = find_named(file.content, build_network(name).state_dict())
    if not networks:
        if network := foreign_network(file.content):
            raise ValueError(network)
        return None
    layout, found, has_ema = _chosen(networks, file, claims, arch, source, ema, prefix)
    if file.config_file:
        raise ValueError(f"laid out as {layout.name}: --config-file is for checkpoints of Detectron2 only")
    original, dropped = _divided(layout, found, file)
    if layout.layer_scale and not any(re.search(r"\.(ls1\.gamma|gamma_1)$", key) for key in original):
        raise ValueError(f"no layer scale (blocks.0.ls1.gamma), which {layout.project} has: it was dropped")
    name, tagged = _named(found, layout, claims, arch, source, original)
    network = _network(name, original)
    weights, unused = _renamed(original, found.family, name, network)
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


def _is_other(arch):
    """Whether a name is timm's, and no encoder's of ``pretrain`` or a user's own code."""
    encoder = None if arch == "auto" else parse_encoder(arch.split(".")[0])
    return isinstance(encoder, NamedEncoder) and arch not in BUILDERS and timm.is_model(arch)


def _chosen(networks, file, claims, arch, source, ema, prefix):
    """The layout, the network that is meant, and whether there is a moving average that was not asked for."""
    if prefix is not None:
        fitting = [one for one in networks if prefix.strip("./") in (one.prefix.strip("."), one.location.strip("./"))]
        if len(fitting) != 1:
            places = first_few(repr(one.location) for one in networks)
            raise ValueError(f"{len(fitting)} networks with the prefix {prefix!r}: there are some at {places}")
        project = f"{fitting[0].kind} behind {prefix!r}"
        layout = TimmLayout("prefix", project, "as named", (), "", beside={"beside it": ""})
        return layout, fitting[0], False
    lines = [*map(name_of, file.content), str(file.get("format"))] if isinstance(file.content, dict) else []
    named = arch if arch != "auto" else claims.name
    lines += ["claimed", named] if named else []
    rows = [row for row in TIMM_LAYOUTS if source in ("auto", row.name)]
    for row in rows:
        online, average = (_only(networks, row, pattern, lines, source != "auto") for pattern in (row.online, row.ema))
        if wanted := (average if ema else online):
            return row, wanted, bool(average) and not ema
        if online or average:
            lacks = "no moving average's network (EMA)" if ema else "that of a moving average alone: add --ema"
            raise ValueError(f"laid out as {row.name}, but holds {lacks} (at {(online or average).location!r})")
    places = first_few(f"{one.kind} at {one.location or 'the top'!r}" for one in networks)
    if source != "auto":
        raise ValueError(f"not laid out as {source}: it has {places}")
    tops = [one for one in networks if re.search(r"^(\w+/)?$", one.location)]
    if tops:
        raise ValueError(
            f"{places}, of which nothing says whose it is: name its project with --source, or timm's weights with "
            "--arch NAME.TAG, by which the mean and std of its images are known"
        )
    raise ValueError(f"{places}, which no known project's layout fits: name its place with --prefix")


def _only(networks, row, pattern, lines, named):
    """The one network whose place, family and names fit a row, or None; a row that was named needs no mark."""
    names = [name for one in networks for name in (*one.beside, *one.weights, *map(one.prefix.__add__, one.weights))]
    marked = named or re.search(row.mark, "\n".join([*lines, *names]), re.MULTILINE)
    fitting = [
        one
        for one in networks
        if pattern and marked and one.family in row.families and re.search(pattern, one.location)
        if not (row.unlike and re.search(row.unlike, "\n".join(one.weights), re.MULTILINE))
    ]
    if len(fitting) > 1:
        places = ", ".join(repr(one.location) for one in fitting)
        raise ValueError(f"{row.project}: several networks, at {places}: name one with --prefix")
    return fitting[0] if fitting else None


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


def _named(found, layout, claims, arch, source, original):
    """timm's name of the network, and the same with a tag if the user gave one.

    Raises:
        ValueError: if names contradict each other, or several names are possible.
    """
    claimed = claims.name.split(".")[0] if claims.name else None
    if arch != "auto":
        if not (timm.is_model(arch) and (found.family == "other" or _is_other(arch))):
            names = claimed or " or ".join(candidates(found, layout.name))
            raise ValueError(f"this is a {names}, not the {arch} that was asked for")
        name, _, tag = arch.partition(".")
        if claimed and claimed != name:
            raise ValueError(f"the checkpoint calls its network {claimed!r}, and {name!r} was asked for")
        return name, arch if tag else None
    if claimed:
        return claimed, None
    if layout.name == "mocov3" and _width(original) == 384:
        raise ValueError(
            "MoCo v3's ViT-S has 12 heads, and timm's vit_small_patch16_224 has 6: no network of timm computes it"
        )
    if layout.name == "beit" and source == "auto":
        both = [name for project in ("beit", "beitv2") for name in candidates(found, project)]
        raise ValueError(
            f"BEiT or BEiT v2, whose images have another mean and std ({', '.join(both)}): name it with --source beit "
            "or --source beitv2"
        )
    names = candidates(found, layout.name)
    fitting = [name for name in names if _fits(original, found.family, name)] if len(names) > 1 else names
    if len(fitting) != 1:
        listed = ", ".join(fitting or names)
        raise ValueError(f"its shapes fit {len(fitting)} of timm's networks ({listed}): name it with --arch")
    if found.family == "vit" and _width(original) == 384 and layout.name == "vit" and _is_fixed(original):
        raise ValueError(
            "a ViT-S with fixed position embeddings: MAE's with 6 heads, or MoCo v3's with 12, which shapes do not "
            "show: name it with --source mae, or --arch"
        )
    return fitting[0], None


def _width(original):
    return (
        next(iter(original["patch_embed.proj.weight"].shape), None) if "patch_embed.proj.weight" in original else None
    )


def _is_fixed(original):
    """Whether the class token's position is 0, as in the sines and cosines of MAE and MoCo v3."""
    return bool((original["pos_embed"][:, 0] == 0).all()) if "pos_embed" in original else False


def _fits(original, family, name):
    """Whether a network has all names and shapes."""
    try:
        _renamed(original, family, name, _network(name, original))
    except ValueError:
        return False
    return True


def _network(name, original):
    """The network on the meta device, with the norm behind its last block if it is a plain ViT whose file has it."""
    levels = levels_of(name)
    has_norm = is_plain(levels) and any(re.match(r"(norm|encoder\.ln)\.", key) for key in original)
    with torch.device("meta"), Undrawn():
        return build_network(name, final_norm=has_norm)


def _renamed(original, family, name, network):
    """timm's names -> tensors, of exactly the network's names and shapes; and how many others no map needs."""
    expected = network.state_dict()
    _refuse_other_size(original, name, expected)
    try:
        weights = to_timm(dict(original), family, network)
    except ValueError as error:
        raise ValueError(f"not a {name}: {error}") from None
    unused: list[str] = []
    if extra := weights.keys() - expected.keys():
        with torch.device("meta"), Undrawn():
            whole = timm.create_model(name, pretrained=False).state_dict()
        unused = [key for key in extra if key in whole]
    weights = {key: value for key, value in weights.items() if key not in unused}
    if found := faults(weights, expected):
        raise ValueError(f"not a {name}, though it begins as one: {'; '.join(found)}")
    return weights, len(unused)


def _refuse_other_size(original, name, expected):
    """ValueError for what timm's filter functions would resample: then it would be another network."""
    registers = "register_tokens" in original
    for key, value in original.items():
        known = expected.get(re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key))
        if known is None or not (key in ("patch_embed.proj.weight", "pos_embed") or key.endswith(TABLE)):
            continue
        shape = list(value.shape)
        if len(shape) != known.dim():  # which ``faults`` says
            continue
        shape[1] -= int(key == "pos_embed" and registers)
        if key == "patch_embed.proj.weight" and shape[2:] != list(known.shape[2:]):
            raise ValueError(f"patches of {shape[3]} pixels, and {name} has {known.shape[3]}: refused, not resampled")
        place = 0 if key.endswith(TABLE) else 1
        if shape[place] != known.shape[place] and key != "patch_embed.proj.weight":
            raise ValueError(
                f"{key} is {'x'.join(map(str, shape))}, and {name}'s is {'x'.join(map(str, known.shape))}: another "
                "image or window size, or other tokens: refused, not resampled"
            )


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

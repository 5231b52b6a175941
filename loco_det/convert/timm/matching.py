"""Which network of timm the weights are, and the same weights with its names: whole, and nothing resampled."""

import re

import timm
import torch
from torch import nn

from pretrain.encoders import BUILDERS, NamedEncoder, parse_encoder

from ...modeling.timm.network import build_network, is_plain, levels_of
from ..sources.architecture import Undrawn, faults
from .layouts import TimmLayout
from .names import TABLE, Weights, to_timm
from .search import FoundNetwork
from .variants import candidates


def is_other(arch: str) -> bool:
    """Whether a name is timm's, and no encoder's of ``pretrain`` or a user's own code."""
    encoder = None if arch == "auto" else parse_encoder(arch.split(".")[0])
    return isinstance(encoder, NamedEncoder) and arch not in BUILDERS and timm.is_model(arch)


def name_of_network(
    found: FoundNetwork, layout: TimmLayout, claimed: str | None, arch: str, source: str, original: Weights
) -> tuple[str, str | None]:
    """timm's name of the network, and the same with a tag if the user gave one.

    Args:
        found: the network.
        layout: whose it is.
        claimed: the name in the file or in config.json beside it, or None.
        arch: as the user names it, or "auto".
        source: the layout that the user names, or "auto".
        original: the file's names -> tensors.

    Raises:
        ValueError: if names contradict each other, or several names are possible.
    """
    claimed = claimed.split(".")[0] if claimed else None
    if layout.name == "mocov3" and _width(original) == 384:
        raise ValueError(
            "MoCo v3's ViT-S has 12 heads, and timm's vit_small_patch16_224 has 6: no network of timm computes it"
        )
    if arch != "auto":
        if not (timm.is_model(arch) and (found.family == "other" or is_other(arch))):
            try:
                known = f"a {claimed or ' or '.join(candidates(found, layout.name))}"
            except ValueError:  # of no size that is known
                known = found.kind
            raise ValueError(f"this is {known}, not the {arch} that was asked for")
        name, _, tag = arch.partition(".")
        if claimed and claimed != name:
            raise ValueError(f"the checkpoint calls its network {claimed!r}, and {name!r} was asked for")
        return name, arch if tag else None
    if claimed:
        return claimed, None
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
    kernel = original.get("patch_embed.proj.weight")
    return None if kernel is None else next(iter(kernel.shape), None)


def _is_fixed(original):
    """Whether the class token's position is 0, as in the sines and cosines of MAE and MoCo v3."""
    return bool((original["pos_embed"][:, 0] == 0).all()) if "pos_embed" in original else False


def _fits(original, family, name):
    """Whether a network has all names and shapes."""
    try:
        renamed(original, family, name, skeleton_of(name, original))
    except ValueError:
        return False
    return True


def skeleton_of(name: str, original: Weights) -> nn.Module:
    """The network on the meta device, with the norm behind its last block if it is a plain ViT whose file has it."""
    levels = levels_of(name)
    has_norm = is_plain(levels) and any(re.match(r"(norm|encoder\.ln)\.", key) for key in original)
    with torch.device("meta"), Undrawn():
        return build_network(name, final_norm=has_norm)


def renamed(original: Weights, family: str, name: str, network: nn.Module) -> tuple[Weights, int]:
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

"""Where in a checkpoint there is a network that timm can compute, and what each of the file's names is."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..sources.search import state_dicts

# A name that each such network has, behind any prefix. timm's own names and those of the projects are one naming where
# timm's filter function reads both; torchvision's are others.
ANCHORS = {
    "vit": r"blocks\.0\.(0\.)?attn\.qkv\.weight",  # DINOv2 divides its blocks into chunks, for FSDP
    "convnext": r"stages\.0\.(0\.dwconv|blocks\.0\.conv_dw)\.weight",
    "swin": r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table",
    "swinv2": r"layers\.0\.blocks\.0\.attn\.logit_scale",
    "regnet": r"s1\.b1\.conv1\.conv\.weight",
    "torchvision-vit": r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight",
    "torchvision-convnext": r"features\.1\.0\.block\.0\.weight",
    "torchvision-swin": r"features\.1\.0\.attn\.relative_position_bias_table",
    "torchvision-regnet": r"trunk_output\.block1\.block1-0\.f\.a\.0\.weight",
}
KINDS = {
    "vit": "vision transformer",
    "convnext": "ConvNeXt",
    "swin": "Swin Transformer",
    "swinv2": "Swin Transformer V2",
    "regnet": "RegNet",
    "other": "network of timm",
}
INSIDE_STAGES = re.compile(r"(^|\.)(layers|stages|network|levels|stage\d)\.\d+\.$")  # of another network's blocks
# Ways of others to name what is above, which no row reads
FOREIGN = {
    r"embeddings\.patch_embeddings?\.projection\.weight": "a network with the names of Hugging Face's transformers",
    r"embeddings\.patch_embeddings\.weight": "a network with the names of Hugging Face's transformers",
    r"visual\.transformer\.resblocks\.0\.": "CLIP's vision transformer",
    r"stages\.0\.0\.dwconv\.kernel": "a ConvNeXt V2 in MinkowskiEngine's sparse convs: take the released dense one",
    r"patch_embed\.proj\.0\.weight": "a vision transformer with a stem of convs (vit_conv_small)",
    r"storage_tokens$": "DINOv3's vision transformer, with rotary embeddings",
}


class FoundNetwork(NamedTuple):
    """A network in a checkpoint.

    Attributes:
        path: keys of the dictionaries that lead to its weights.
        family: a key of ``ANCHORS``, or "other".
        prefix: of its names there.
        weights: its own names, without prefix -> values.
        beside: the other names of that dictionary.
    """

    path: tuple[str, ...]
    family: str
    prefix: str
    weights: dict
    beside: list[str]

    @property
    def kind(self) -> str:
        """The family in words."""
        return f"a {KINDS[self.family.removeprefix('torchvision-')]}"

    @property
    def location(self) -> str:
        """The same as "keys/of/dictionaries/prefix."."""
        return "/".join([*self.path, self.prefix])


def find_networks(content: object) -> list[FoundNetwork]:
    """All networks of the families in a checkpoint.

    Args:
        content: what the file holds: nested dictionaries with state dicts in them.

    Raises:
        ValueError: as :func:`..sources.search.state_dicts`.
    """
    found = []
    for path, weights, _ in state_dicts(content):
        for family, prefix in _prefixes(weights):
            own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            beside = [name for name in weights if not name.startswith(prefix)]
            found.append(FoundNetwork(path, family, prefix, own, beside))
    return found


def _prefixes(weights) -> Iterator[tuple[str, str]]:
    for family, anchor in ANCHORS.items():
        for name in weights:
            if (match := re.fullmatch(rf"((?:.*\.)?){anchor}", name)) and not INSIDE_STAGES.search(match[1]):
                yield family, match[1]


def find_named(content: object, names: Iterable[str]) -> list[FoundNetwork]:
    """The dictionaries of a checkpoint that hold a network of timm of any other kind: most of its names, bare.

    Args:
        content: as of :func:`find_networks`.
        names: of the network's parameters.
    """
    wanted = set(names)
    return [
        FoundNetwork(path, "other", "", weights, [])
        for path, weights, _ in state_dicts(content)
        if 2 * len(wanted & weights.keys()) > len(wanted)
    ]


def foreign_network(content: object) -> str | None:
    """The network of a naming that no row reads, in a line for the user, or None."""
    for _, weights, _ in state_dicts(content):
        for pattern, network in FOREIGN.items():
            if name := next((name for name in weights if re.search(rf"(^|\.){pattern}", name)), None):
                return f"{network} ({name}), which is not converted"
    return None


def other_dictionaries(content: object, path: tuple[str, ...]) -> dict[str, int]:
    """Top-level key -> how many tensors are in its dictionaries, without those at ``path``."""
    counts: dict[str, int] = {}
    for other, weights, _ in state_dicts(content):
        if other != path:
            key = other[0] if other else "the top"
            counts[key] = counts.get(key, 0) + len(weights)
    return counts

"""timm's name of a network by the shapes of its weights.

Only names whose networks compute what the projects' own do are given: of timm's many names with the same shapes the
others differ in an epsilon, an activation or the number of heads, which shapes do not show.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import timm
from timm.models.regnet import model_cfgs

from .search import FoundNetwork

# Width and depth -> size; heads are width / 64, of "huge" 16
VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge",
        (1536, 40): "giant"}  # fmt: skip
# Depths, width of the first stage -> size
CONVNEXTS = {((2, 2, 6, 2), 40): "atto", ((2, 2, 6, 2), 48): "femto", ((2, 2, 6, 2), 64): "pico",
             ((2, 2, 8, 2), 80): "nano", ((3, 3, 9, 3), 96): "tiny", ((3, 3, 27, 3), 96): "small",
             ((3, 3, 27, 3), 128): "base", ((3, 3, 27, 3), 192): "large", ((3, 3, 27, 3), 256): "xlarge",
             ((3, 3, 27, 3), 352): "huge"}  # fmt: skip
SWINS = {((2, 2, 6, 2), 96): "tiny", ((2, 2, 18, 2), 96): "small", ((2, 2, 18, 2), 128): "base",
         ((2, 2, 18, 2), 192): "large"}  # fmt: skip


def candidates(found: FoundNetwork, project: str) -> list[str]:
    """timm's names that a network's shapes allow, by the sizes that its project has published.

    Args:
        found: the network.
        project: name of its layout.

    Returns:
        list: none, one or several names.

    Raises:
        ValueError: in one line, if a weight that says the size is missing, or the size is none of the known ones.
    """
    family = found.family.removeprefix("torchvision-")
    kinds = {"vit": _vits, "convnext": _convnexts, "swin": _swins, "swinv2": _swins, "regnet": _regnets}
    of = kinds.get(family, lambda *_: [])
    names = [name for name in of(found.weights, found.family, project) if timm.is_model(name)]
    if not names:
        raise ValueError(_unknown(found.kind))
    return names


def _vits(weights, family, project):
    if family == "torchvision-vit":
        kernel, positions, blocks = "conv_proj.weight", "encoder.pos_embedding", r"encoder\.layers\.encoder_layer_(\d+)"
    else:
        kernel, positions, blocks = "patch_embed.proj.weight", "pos_embed", r"blocks\.(?:\d+\.)?(\d+)"
    width, patch = _shape(weights, kernel, 4)[0], _shape(weights, kernel, 4)[3]
    size, depth = VITS.get((width, _count(weights, blocks))), _count(weights, blocks)
    scaled = any(re.search(r"\.ls1\.gamma$", name) for name in weights)
    if "blocks.0.attn.relative_position_bias_table" in weights or any(n.startswith("rel_pos_bias.") for n in weights):
        if size is None:
            raise ValueError(_unknown(f"a BEiT of {depth} blocks of {width} channels"))
        return [f"{project}_{size}_patch{patch}_{side}" for side in (224, 384, 512)]
    if positions not in weights:
        raise ValueError(f"no position embeddings ({positions}): a vision transformer without them is not converted")
    tokens = _shape(weights, positions, 3)[1]
    registers = next((_shape(weights, n, 3)[1] for n in ("register_tokens", "reg_token") if n in weights), 0)
    own = "reg_token" not in weights  # timm gives registers, and a class token beside them, no position
    grid = math.isqrt(max(tokens - 1, 0)) if own else math.isqrt(tokens)
    if grid**2 + own != tokens or size is None:
        raise ValueError(
            _unknown(f"a vision transformer of {depth} blocks of {width} channels with {tokens} position embeddings")
        )
    if scaled:
        kind = f"reg{registers}_dinov2" if registers else "dinov2"
        side = grid * patch
        if side != 518:
            raise ValueError(
                f"DINOv2's blocks with patches of {patch} pixels and positions of {side} x {side} pixels, while timm's "
                "have 14 and 518: another patch or image size is not converted"
            )
        return [f"vit_{size}_patch{patch}_{kind}"]
    return [f"vit_{size}_patch{patch}_{grid * patch}"]


def _convnexts(weights, family, project):
    if family == "torchvision-convnext":
        depths, stem = _depths(weights, r"features\.([1357])\.(\d+)\.", 2), "features.0.0.weight"
    else:
        depths = _depths(weights, r"stages\.(\d)\.(?:blocks\.)?(\d+)\.", 1)
        stem = "downsample_layers.0.0.weight" if "downsample_layers.0.0.weight" in weights else "stem.0.weight"
    width = _shape(weights, stem, 4)[0]
    size = CONVNEXTS.get((depths, width))
    if size is None:
        raise ValueError(_unknown(f"a ConvNeXt of {'-'.join(map(str, depths))} blocks from {width} channels"))
    second = any(".grn." in name for name in weights)
    return [f"convnextv2_{size}" if second else f"convnext_{size}"]


def _swins(weights, family, project):
    torchvision = family.startswith("torchvision-")
    pattern = r"features\.([1357])\.(\d+)\." if torchvision else r"layers\.(\d)\.blocks\.(\d+)\."
    depths = _depths(weights, pattern, 2 if torchvision else 1)
    width = _shape(weights, "features.0.0.weight" if torchvision else "patch_embed.proj.weight", 4)[0]
    size = SWINS.get((depths, width))
    if size is None:
        raise ValueError(_unknown(f"a Swin Transformer of {'-'.join(map(str, depths))} blocks from {width} channels"))
    if family == "swinv2":
        return [name for name in timm.list_models(f"swinv2_{size}_window*")]
    place = "features.1.0.attn." if torchvision else "layers.0.blocks.0.attn."
    entries = _shape(weights, f"{place}relative_position_bias_table", 2)[0]
    window = (math.isqrt(entries) + 1) // 2
    return [f"swin_{size}_patch4_window{window}_{side}" for side in (224, 384)]


def _regnets(weights, family, project):
    torchvision = family.startswith("torchvision-")
    blocks = r"trunk_output\.block\d\.(block\d-\d+)\." if torchvision else r"(s\d\.b\d+)\."
    depth = len({match[1] for name in weights if (match := re.match(blocks, name))})
    squeezed = any(re.search(r"\.se\.", name) for name in weights)
    return [
        name
        for name, cfg in model_cfgs.items()
        if re.match(r"regnet[xy]_\d+(_tv)?$", name) and cfg.depth == depth and bool(cfg.se_ratio) == squeezed
    ]


def _shape(weights: Mapping[str, Any], name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a weight that has to be there."""
    if name not in weights:
        raise ValueError(f"no {name}, which says the size of the network")
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{name} has the shape {shape}, expected {dimensions} dimensions")
    return shape


def _count(weights, pattern):
    """How many blocks there are."""
    return len({match[1] for name in weights if (match := re.match(rf"{pattern}\.", name))})


def _depths(weights, pattern, step):
    """How many blocks each of four stages has; stages are numbered with this step."""
    blocks: dict[int, set[str]] = {}
    for name in weights:
        if match := re.match(pattern, name):
            blocks.setdefault(int(match[1]) // step, set()).add(match[2])
    return tuple(len(blocks.get(stage, ())) for stage in range(4))


def _unknown(what):
    return f"{what}, which is none of the sizes known: name the network with --arch, as timm does"

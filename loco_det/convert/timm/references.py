"""The source network that a conversion is compared with, computed from the file's own names and not by timm.

Plain ViTs and ConvNeXts are written out after the definitions of their projects. Swin Transformers, and all networks
with torchvision's names, are torchvision's. There is none of another kind.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from .convnext_definition import convnext_maps, names_of_convnext
from .search import FoundNetwork
from .torchvision_networks import torchvision_convnext, torchvision_regnet, torchvision_swin, torchvision_vit_maps
from .vit_definition import Maps, Weights, vit_maps


def reference(found: FoundNetwork, original: Weights, name: str) -> nn.Module | Callable[[torch.Tensor], Maps] | None:
    """The source network of a file.

    Args:
        found: which kind it is.
        original: the file's names -> tensors.
        name: timm's, by which the heads of a ViT are known.

    Returns:
        A function of normalised images (B, 3, H, W), whose sides are multiples of the patch, or of 32, to the maps of
        its stages; of a plain ViT one or two. None: there is none but timm's own.
    """
    w = {key: value.detach().float() for key, value in original.items() if value.is_floating_point()}
    if found.family in ("vit", "torchvision-vit"):
        with torch.device("meta"):
            network: Any = timm.create_model(name, num_classes=0)
        heads = network.blocks[0].attn.num_heads
        maps = vit_maps if found.family == "vit" else torchvision_vit_maps
        return lambda images: maps(w, images, heads)
    if found.family == "convnext":
        own = w if "stages.0.0.dwconv.weight" in w else names_of_convnext(w)
        return lambda images: convnext_maps(own, images)
    makers = {
        "swin": torchvision_swin,
        "torchvision-swin": torchvision_swin,
        "torchvision-convnext": torchvision_convnext,
        "torchvision-regnet": torchvision_regnet,
    }
    return makers[found.family](w) if found.family in makers else None

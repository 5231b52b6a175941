"""Networks of torchvision with the weights of a file, as source networks that timm has nothing to do with."""

import math
import re

import torch
from torch import nn
from torchvision.models import RegNet
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.regnet import BlockParams
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from .vit_definition import Maps, Weights, positions_of_grid


class StageMaps(nn.Module):
    """A network of torchvision that gives out the maps of its stages."""

    def __init__(self, network: nn.Module, stages: list[str], channels_last: bool = False) -> None:
        """
        Args:
            network: of torchvision.
            stages: names of the modules whose outputs they are.
            channels_last: whether these are (B, H, W, C).
        """
        super().__init__()
        self.network, self.stages, self.channels_last = network, stages, channels_last

    def forward(self, images: torch.Tensor) -> Maps:
        """(B, 3, H, W), normalised -> the stages' maps, (B, C, H', W')."""
        maps: Maps = []
        hooks = [
            self.network.get_submodule(name).register_forward_hook(lambda module, given, output: maps.append(output))
            for name in self.stages
        ]
        try:
            self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def torchvision_swin(w: Weights) -> StageMaps:
    """torchvision's Swin Transformer with the weights of a file in torchvision's names, Swin's own or timm's."""
    if "features.0.0.weight" not in w:
        w = _swin_in_torchvision(w)
    places = [f"features.{place}" for place in (1, 3, 5, 7)]
    depths = [len({name.split(".")[2] for name in w if name.startswith(f"{place}.")}) for place in places]
    tables = [w[f"{place}.0.attn.relative_position_bias_table"] for place in places]
    side = (math.isqrt(tables[0].shape[0]) + 1) // 2
    network = SwinTransformer(
        patch_size=list(w["features.0.0.weight"].shape[2:]),
        embed_dim=w["features.0.0.weight"].shape[0],
        depths=depths,
        num_heads=[table.shape[1] for table in tables],
        window_size=[side, side],
        stochastic_depth_prob=0.0,
        num_classes=1,
    )
    return StageMaps(_loaded(network, w), places, channels_last=True)


def _swin_in_torchvision(w):
    """Swin's own names, or timm's, which has the reduction at the beginning of the next stage."""
    own = "layers.0.downsample.reduction.weight" in w
    renamed = {}
    for name, value in w.items():
        new = name.replace("patch_embed.proj", "features.0.0").replace("patch_embed.norm", "features.0.2")
        if match := re.match(r"layers\.(\d)\.downsample\.", new):
            new = f"features.{2 * int(match[1]) + (2 if own else 0)}.{new[match.end() :]}"
        elif match := re.match(r"layers\.(\d)\.blocks\.", new):
            new = f"features.{2 * int(match[1]) + 1}.{new[match.end() :]}"
        renamed[new.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")] = value
    return renamed


def torchvision_convnext(w: Weights) -> StageMaps:
    """torchvision's ConvNeXt with the weights of a file in its names."""
    places = [f"features.{place}" for place in (1, 3, 5, 7)]
    widths = [w[f"{place}.0.layer_scale"].shape[0] for place in places]
    depths = [len({name.split(".")[2] for name in w if name.startswith(f"{place}.")}) for place in places]
    settings = [
        CNBlockConfig(width, following, depth)
        for width, following, depth in zip(widths, [*widths[1:], None], depths, strict=True)
    ]
    return StageMaps(_loaded(ConvNeXt(settings, stochastic_depth_prob=0.0, num_classes=1), w), places)


def torchvision_regnet(w: Weights) -> StageMaps:
    """torchvision's RegNet with the weights of a file in its names."""
    stages = []
    for stage in range(1, 5):
        first = f"trunk_output.block{stage}.block{stage}-0"
        pattern = rf"trunk_output\.block{stage}\.(block{stage}-\d+)\."
        depth = len({match[1] for name in w if (match := re.match(pattern, name))})
        stages.append((w[f"{first}.f.a.0.weight"].shape[0], w[f"{first}.f.b.0.weight"].shape[1], depth))
    params = BlockParams(
        depths=[depth for _, _, depth in stages],
        widths=[width for width, _, _ in stages],
        group_widths=[group for _, group, _ in stages],
        bottleneck_multipliers=[1.0] * 4,
        strides=[2] * 4,
        se_ratio=0.25 if "trunk_output.block1.block1-0.f.se.fc1.weight" in w else None,
    )
    return StageMaps(_loaded(RegNet(params, num_classes=1), w), [f"trunk_output.block{k}" for k in range(1, 5)])


def torchvision_vit_maps(w: Weights, images: torch.Tensor, heads: int) -> Maps:
    """The last block's map of torchvision's ViT, which has torchvision's own attention; any size by its positions.

    Args:
        w: torchvision's names -> tensors.
        images: (B, 3, H, W), normalised; H and W are multiples of the patch.
        heads: of the attention.
    """
    patch, width = w["conv_proj.weight"].shape[-1], w["conv_proj.weight"].shape[0]
    layers = {name.split(".")[2] for name in w if name.startswith("encoder.layers.")}
    first = "encoder.layers.encoder_layer_0.mlp."
    hidden = w[f"{first}0.weight" if f"{first}0.weight" in w else f"{first}linear_1.weight"].shape[0]
    side = math.isqrt(w["encoder.pos_embedding"].shape[1] - 1) * patch
    network = VisionTransformer(side, patch, len(layers), heads, width, hidden, num_classes=1)
    _loaded(network, w)
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    x = network.conv_proj(images).flatten(2).transpose(1, 2)
    places = w["encoder.pos_embedding"]
    x = torch.cat([network.class_token.expand(len(x), -1, -1), x], 1)
    x = x + torch.cat([places[:, :1], positions_of_grid(places[:, 1:], rows, columns)], 1)
    x = network.encoder.layers(x)
    return [y[:, 1:].transpose(1, 2).reshape(len(x), width, rows, columns) for y in (x, network.encoder.ln(x))]


def _loaded(network, w):
    """A network of torchvision with weights for all of it but its head and last norm, in evaluation mode."""
    missing, extra = network.load_state_dict(w, strict=False)
    unused = re.compile(r"(heads?|classifier|fc|norm)\.|.*(relative_position_index|num_batches)")
    used = [name for name in missing if not unused.match(name)]
    if used or extra:
        raise ValueError(f"not torchvision's {type(network).__name__}: {[*used, *extra][:3]}")
    return network.eval()

"""Networks of timm that are small, under names by which the converter knows large ones, and their random weights."""

import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models import register_model
from timm.models.beit import _create_beit
from timm.models.swin_transformer import _create_swin_transformer
from timm.models.vision_transformer import _create_vision_transformer
from torch import nn

from loco_det.convert.timm import variants

WIDTH, DEPTH = 64, 2


def _small(create, name, size="test", **settings):
    def build(pretrained=False, **options):
        return create(name, pretrained=pretrained, **{**settings, **options})

    build.__name__ = f"{name.split('_')[0]}_{size}_{name.split('_', 2)[2]}"
    build.__module__ = __name__
    register_model(build)
    # The images of the large one: mean, std, size
    timm.models._registry._model_pretrained_cfgs[build.__name__] = timm.get_pretrained_cfg(name)
    return build


PLAIN = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 1}
_small(_create_vision_transformer, "vit_small_patch16_224", patch_size=16, **PLAIN)
_small(_create_vision_transformer, "vit_small_patch14_dinov2", patch_size=14, img_size=518, init_values=1e-5,
       **PLAIN)  # fmt: skip
_small(_create_vision_transformer, "vit_small_patch14_reg4_dinov2", patch_size=14, img_size=518, init_values=1e-5,
       reg_tokens=4, no_embed_class=True, **PLAIN)  # fmt: skip
_small(_create_vision_transformer, "vit_giant_patch14_dinov2", "swiglu", patch_size=14, img_size=518, init_values=1e-5,
       mlp_ratio=4, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, **{**PLAIN, "depth": DEPTH + 1})  # fmt: skip
BEIT = {"patch_size": 16, "use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1}
_small(_create_beit, "beit_base_patch16_224", **BEIT, **PLAIN)
_small(_create_beit, "beitv2_base_patch16_224", **BEIT, **PLAIN)
_small(_create_swin_transformer, "swin_tiny_patch4_window7_224", patch_size=4, window_size=7, embed_dim=24,
       depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))  # fmt: skip
variants.VITS[WIDTH, DEPTH] = "test"
variants.VITS[WIDTH, DEPTH + 1] = "swiglu"
variants.SWINS[(2, 2, 2, 2), 24] = "test"


def random_weights(network, seed=0):
    """The state dict of a network, far from the identity everywhere, so that what is lost shows."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in network.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if not value.is_floating_point():
            weights[name] = value.clone()
        elif name.endswith("running_var"):
            weights[name] = noise.abs() + 0.5
        elif name.endswith(("token", "tokens", "pos_embed", "pos_embedding", "table")):
            weights[name] = 0.5 * noise
        elif value.dim() > 1 and not ("grn" in name or "layer_scale" in name):
            weights[name] = noise * value[0].numel() ** -0.5
        else:
            weights[name] = 0.2 * noise + (1 if name.endswith(("weight", "gamma", "gamma_1", "gamma_2")) else 0)
    return weights


def weights_of(name, seed=0, **options):
    """Random weights of a network of timm."""
    return random_weights(timm.create_model(name, **options), seed)

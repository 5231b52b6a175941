"""Checkpoints of the projects whose networks timm computes, in each project's own layout and names.

``PROJECTS`` has a function for each, of weights with timm's names of the trained network and of its moving average (or
for torchvision's networks of none); it returns what the project saves.
"""

import argparse
import json
import re

import torch
from small_networks import WIDTH, random_weights, weights_of
from torchvision.models import RegNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.regnet import BlockParams

SWIGLU = "vit_swiglu_patch14_dinov2"
VIT, DINOV2, REGISTERS = "vit_test_patch16_224", "vit_test_patch14_dinov2", "vit_test_patch14_reg4_dinov2"
BEIT, BEITV2, SWIN = "beit_test_patch16_224", "beitv2_test_patch16_224", "swin_test_patch4_window7_224"
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1}]}


def tensors(names, *shape):
    return {name: torch.randn(*(shape or (4, 4))) for name in names}


def behind(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def vit(seed=0, **options):
    return weights_of(VIT, seed, num_classes=0, **options)


def head(prefix=""):
    names = [f"mlp.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    return behind(prefix, tensors([*names, "last_layer.weight_g", "last_layer.weight_v"]))


def dino(extra=None):
    def build():
        student = {**behind("module.backbone.", {**vit(0), **(extra or {})}), **head("module.head.")}
        teacher = {**behind("backbone.", vit(1)), **head("head.")}
        return {"student": student, "teacher": teacher, "optimizer": OPTIMIZER, "epoch": 3, "fp16_scaler": None,
                "args": argparse.Namespace(arch="vit_small", patch_size=16),
                "dino_loss": {"center": torch.zeros(1, 8)}}  # fmt: skip

    return build


def dinov2(name):
    """timm's names back to DINOv2's: registers, and a position of the class token, which timm has added to it."""
    weights = weights_of(name, num_classes=0)
    if "reg_token" in weights:
        weights["register_tokens"] = weights.pop("reg_token")
        weights["pos_embed"] = torch.cat([torch.randn(1, 1, WIDTH), weights["pos_embed"]], 1)
    if name == SWIGLU:
        weights = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for key, v in weights.items()}
    return {**weights, "mask_token": torch.zeros(1, WIDTH)}


def dinov2_trained():
    """With the blocks in chunks, as for FSDP, whose numbers go on."""
    weights = {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", name): v for name, v in dinov2(DINOV2).items()}
    return {"teacher": {**behind("backbone.", weights), **head("dino_head."), **head("ibot_head.")}}


def mae():
    decoder = ["decoder_embed.weight", "decoder_pos_embed", "decoder_blocks.0.attn.qkv.weight", "decoder_norm.weight",
               "decoder_pred.weight", "mask_token"]  # fmt: skip
    return {"model": {**vit(), **tensors(decoder)}, "optimizer": OPTIMIZER, "epoch": 3, "scaler": {"scale": 1.0},
            "args": argparse.Namespace(model="mae_vit_base_patch16")}  # fmt: skip


def mae_released():
    return {"model": vit()}


def mocov3():
    projector = behind("head.", tensors(["0.weight", "1.running_mean", "3.weight"]))
    online, momentum = {**vit(0), **projector}, {**vit(1), **projector}
    return {"state_dict": {**behind("module.base_encoder.", online), **behind("module.momentum_encoder.", momentum),
                           **behind("module.predictor.", tensors(["0.weight", "3.weight"]))},
            "arch": "vit_base", "epoch": 3, "optimizer": OPTIMIZER}  # fmt: skip


def ibot_released():
    return {"state_dict": {**vit(), "masked_embed": torch.zeros(1, WIDTH)}}


def beit(name, shared=False):
    weights = weights_of(name, num_classes=0)
    weights = {**{key: v for key, v in weights.items() if not key.startswith("fc_norm")}}
    index = torch.zeros(197, 197, dtype=torch.long)
    tables = [key for key in weights if key.endswith("_table")]
    if shared:
        weights["rel_pos_bias.relative_position_bias_table"] = weights[tables[0]]
        for key in tables:
            del weights[key]
        weights |= {"rel_pos_bias.relative_position_index": index, "mask_token": torch.zeros(1, 1, WIDTH)}
        weights |= tensors(
            ["norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias", "cls_pt_layers.0.norm1.weight"]
        )
    else:
        weights |= {key.replace("bias_table", "index"): index for key in tables}
        weights |= tensors(["fc_norm.weight", "fc_norm.bias", "head.weight"])
    return {"model": weights}


def convnext(name):
    renamed = {}
    for key, value in weights_of(name).items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", key).replace("mlp.grn.weight", "grn.gamma")
        key = key.replace("mlp.grn.bias", "grn.beta").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        key = key.replace("head.norm", "norm").replace("head.fc", "head")
        value = value.reshape(1, 1, 1, -1) if ".grn." in key else value
        renamed[key] = value.flatten(1) if "pwconv" in key and value.dim() == 4 else value
    return {"model": renamed}


def swin():
    """Swin's reduction is at the end of a stage, timm's at the beginning of the next."""
    renamed = {}
    for key, value in weights_of(SWIN).items():
        key = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)
        renamed[key.replace("head.fc", "head")] = value
    index = torch.zeros(49, 49, dtype=torch.long)
    masks = {
        "layers.0.blocks.0.attn.relative_position_index": index,
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
    }
    return {"model": {**renamed, **masks}}


def torchvision_convnext():
    widths, depths = (40, 80, 160, 320), (2, 2, 6, 2)
    settings = [CNBlockConfig(w, n, d) for w, n, d in zip(widths, [*widths[1:], None], depths, strict=True)]
    return random_weights(ConvNeXt(settings, num_classes=3))


def torchvision_swin():
    return random_weights(SwinTransformer([4, 4], 24, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7], num_classes=3))


def torchvision_regnet(squeezed):
    # regnet_y_400mf's and regnet_x_400mf's, of torchvision's tables
    parameters = {"depth": 16, "w_0": 48, "w_a": 27.89, "w_m": 2.09, "group_width": 8, "se_ratio": 0.25}
    if not squeezed:
        parameters = {"depth": 22, "w_0": 24, "w_a": 24.48, "w_m": 2.54, "group_width": 16}
    return random_weights(RegNet(BlockParams.from_init_params(**parameters), num_classes=3))


def torchvision_ema():
    network = VisionTransformer(224, 16, 2, 1, WIDTH, 4 * WIDTH, num_classes=3)
    average = behind("module.", random_weights(network, 1))
    return {"model": random_weights(network), "model_ema": {**average, "n_averaged": torch.tensor(4)},
            "optimizer": OPTIMIZER, "epoch": 3}  # fmt: skip


def lightly_train():
    place = "wrapped_model._model."
    return {"state_dict": {**behind(f"student_embedding_model.{place}", vit(0)),
                           **behind(f"teacher_embedding_model.{place}", vit(1)),
                           **head("student_projection_head."), **head("teacher_projection_head."),
                           "criterion.center": torch.zeros(8)},
            "lightly_train": {"normalize_args": {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}},
            "optimizer_states": [OPTIMIZER], "callbacks": {}, "epoch": 3}  # fmt: skip


def ours():
    """As pretrain/engine/checkpoint.py writes it."""
    weights = {name: value for name, value in vit().items() if not name.startswith("norm.")}
    model = {**behind("encoder.network.", weights), **tensors(["decoders.res5.0.weight", "decoders.res5.0.bias"])}
    config = {"MODEL": {"ENCODER": f"timm:{VIT}", "PIXEL_MEAN": [100.0, 110.0, 120.0], "PIXEL_STD": [50.0, 51.0, 52.0]}}
    return {"format": "loco-det pretraining", "encoder": f"timm:{VIT}", "model": model, "config": json.dumps(config),
            "iteration": 9, "run": {"images": 100}}  # fmt: skip


def timm_trained():
    arguments = argparse.Namespace(model=VIT, mean=None, std=None)
    return {"arch": VIT, "state_dict": weights_of(VIT, 0), "state_dict_ema": weights_of(VIT, 1),
            "optimizer": OPTIMIZER, "args": arguments, "version": 2, "epoch": 3}  # fmt: skip


PROJECTS = {
    "dino": dino(),
    "dino-released": vit,
    "ibot": dino({"masked_embed": torch.zeros(1, WIDTH)}),
    "ibot-released": ibot_released,
    "dinov2": lambda: dinov2(DINOV2),
    "dinov2-registers": lambda: dinov2(REGISTERS),
    "dinov2-swiglu": lambda: dinov2(SWIGLU),
    "dinov2-trained": dinov2_trained,
    "mae": mae,
    "mae-released": mae_released,
    "mocov3": mocov3,
    "beit": lambda: beit(BEIT),
    "beitv2": lambda: beit(BEITV2, shared=True),
    "convnext": lambda: convnext("convnext_atto"),
    "convnextv2": lambda: convnext("convnextv2_atto"),
    "swin": swin,
    "torchvision-vit": torchvision_ema,
    "torchvision-convnext": torchvision_convnext,
    "torchvision-swin": lambda: random_weights(
        SwinTransformer([4, 4], 24, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7], num_classes=3)
    ),
    "torchvision-regnet-y": lambda: torchvision_regnet(True),
    "torchvision-regnet-x": lambda: torchvision_regnet(False),
    "lightly-train": lightly_train,
    "timm": timm_trained,
    "loco-det": ours,
}

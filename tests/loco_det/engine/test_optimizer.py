"""AdamW and layer-wise decay: each parameter's rate and weight decay, against tables written by hand."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import build_optimizer as build_sgd
from torch import nn

from loco_det.config import add_loco_config
from loco_det.engine.optimizer import UNDECAYED, build_optimizer
from loco_det.modeling.timm.backbone import TimmBackbone
from loco_det.modeling.timm.layers import decay_factors
from loco_det.modeling.timm.network import build_network


class Detector(nn.Module):
    """A network where a detector has it, and a new layer."""

    def __init__(self, name, **options):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.net = TimmBackbone(name, **options)
        self.backbone.simfp_4 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))


def config(**keys):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.SOLVER.OPTIMIZER, cfg.MODEL.TIMM.NAME = "AdamW", "test_vit"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 1e-3, 0.1, 0.0
    cfg.merge_from_list([word for pair in keys.items() for word in pair])
    return cfg


def by_name(model, optimizer):
    """Name of each parameter of the optimiser -> its group."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_rates_of_a_vit():
    model = Detector("test_vit")
    groups = by_name(model, build_optimizer(config(**{"SOLVER.LAYER_DECAY": 0.5}), model))
    assert groups.keys() == dict(model.named_parameters()).keys()
    depth = len(model.backbone.net.network.blocks)
    assert depth == 6
    table = {"cls_token": 2.0**-7, "pos_embed": 2.0**-7, "patch_embed": 2.0**-7}
    table |= {f"blocks.{k}": 2.0 ** (k - 6) for k in range(6)}  # 1/64 for the first block, 1/2 for the last
    for name, group in groups.items():
        parts = name.removeprefix("backbone.net.network.").split(".")
        wanted = table.get(".".join(parts[:2]), table.get(parts[0], 1.0))
        assert group["lr"] == pytest.approx(1e-3 * wanted), name
        if not name.endswith("cls_token"):  # ViTDet has none
            assert wanted == get_vit_lr_decay_rate(name, 0.5, depth), name
    assert groups["backbone.simfp_4.0.weight"]["lr"] == 1e-3


def test_rates_of_convnext_are_those_of_its_recipe():
    """num_layers 6 and 12 of its configs, by hand."""
    table = {"stem": 0, "stages.0": 1, "stages.1": 2, "stages.2.downsample": 3, "stages.3": 6}
    table |= {f"stages.2.blocks.{k}": 3 + k // 3 for k in range(9)}
    for name, last in (("convnext_tiny", 6), ("convnext_small", 12)):
        with torch.device("meta"):
            network = build_network(name)
        if last == 12:
            table |= {f"stages.2.blocks.{k}": 3 + k // 3 for k in range(27)} | {"stages.3": 12}
        factors = decay_factors(network, 0.7)
        assert factors.keys() == dict(network.named_parameters()).keys()
        for key, factor in factors.items():
            parts = key.split(".")
            (layer,) = {table[".".join(parts[:n])] for n in (1, 2, 3, 4) if ".".join(parts[:n]) in table}
            assert factor == pytest.approx(0.7 ** (last + 1 - layer)), key


def test_rates_of_swin_rise_with_its_blocks():
    with torch.device("meta"):
        network = build_network("swin_tiny_patch4_window7_224")
    factors = decay_factors(network, 0.5)
    assert factors["patch_embed.proj.weight"] == min(factors.values()) == 2.0**-13  # 12 blocks
    blocks = [factors[f"layers.{s}.blocks.{b}.attn.qkv.weight"] for s, n in enumerate((2, 2, 6, 2)) for b in range(n)]
    assert blocks == [2.0**-k for k in range(12, 0, -1)]


def test_what_has_no_weight_decay():
    for name, undecayed in (("test_vit", ("cls_token", "pos_embed")), ("test_convnext", ("gamma",))):
        model = Detector(name)
        groups = by_name(model, build_optimizer(config(**{"MODEL.TIMM.NAME": name}), model))
        for key, group in groups.items():
            norm = "norm" in key or "simfp_4.1" in key or key.endswith(("stem.1.weight", "stem.1.bias"))
            norm |= ".downsample.0." in key
            assert group["weight_decay"] == (0 if norm or key.endswith(undecayed) else 0.1), key
        assert any(key.endswith(undecayed) for key in groups)
    cfg = config(**{"MODEL.TIMM.NAME": "test_convnext", "SOLVER.WEIGHT_DECAY_BIAS": 0.0})
    groups = by_name(model, build_optimizer(cfg, model))
    assert all(group["weight_decay"] == (0.1 if p.ndim > 1 else 0) for key, group in groups.items()
               for p in [dict(model.named_parameters())[key]])  # fmt: skip


def test_every_name_of_a_layer_scale_has_no_weight_decay():
    """Of ViT and ConvNeXt, BEiT, XCiT, Hiera or MetaFormer in timm; GRN's, for one, are none."""
    scales = "ls1.gamma gamma_1 gamma3 ls2 layer_scale layer_scale1.scale res_scale2.scale".split()
    assert all(UNDECAYED.search(name) and UNDECAYED.search(f"blocks.0.{name}") for name in scales)
    assert not any(UNDECAYED.search(name) for name in ("mlp.grn.weight", "attn.logit_scale", "conv.ls1.weight"))


def test_steps():
    """AdamW's first step is of the learning rate's size; SGD has Detectron2's groups, and the decay too if asked."""
    torch.manual_seed(0)
    model = Detector("test_vit", freeze_at=2)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer = build_optimizer(config(**{"SOLVER.LAYER_DECAY": 0.5, "SOLVER.WEIGHT_DECAY": 0.0}), model)
    sum((p**2).sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    step = model.backbone.net.network.blocks[5].mlp.fc1.weight - before["backbone.net.network.blocks.5.mlp.fc1.weight"]
    assert step.abs().max().item() == pytest.approx(5e-4, rel=1e-3)
    assert all(torch.equal(p, before[k]) for k, p in model.named_parameters() if not p.requires_grad)
    plain = config(**{"SOLVER.OPTIMIZER": "SGD"})
    ours, theirs = build_optimizer(plain, model), build_sgd(plain, model)
    assert type(ours) is type(theirs) is torch.optim.SGD and str(ours) == str(theirs)
    decayed = build_optimizer(config(**{"SOLVER.OPTIMIZER": "SGD", "SOLVER.LAYER_DECAY": 0.5}), model)
    assert type(decayed) is torch.optim.SGD and decayed.defaults["momentum"] == 0.9
    assert by_name(model, decayed)["backbone.net.network.blocks.5.mlp.fc1.weight"]["lr"] == 5e-4


@pytest.mark.parametrize("keys, message", [
    ({"SOLVER.OPTIMIZER": "adam"}, "SOLVER.OPTIMIZER 'adam': use one of SGD, AdamW"),
    ({"SOLVER.LAYER_DECAY": 0.0}, "SOLVER.LAYER_DECAY 0.0: expected a factor"),
    ({"SOLVER.LAYER_DECAY": 0.7, "MODEL.TIMM.NAME": ""}, "is for networks of timm"),
])  # fmt: skip
def test_what_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(config(**keys), Detector("test_vit"))

"""Which networks of timm there are maps of, and the lines that the others get."""

import pytest
import timm
import torch
from torch import nn

from loco_det.modeling.timm.network import build_network, levels_of


@pytest.mark.parametrize(
    "name, maps",
    [
        ("convnext_tiny", [("res2", 96, 4), ("res3", 192, 8), ("res4", 384, 16), ("res5", 768, 32)]),
        ("swin_tiny_patch4_window7_224", [("res2", 96, 4), ("res3", 192, 8), ("res4", 384, 16), ("res5", 768, 32)]),
        ("regnetx_002", [("res2", 24, 4), ("res3", 56, 8), ("res4", 152, 16), ("res5", 368, 32)]),
        ("resnet18.a1_in1k", [("res2", 64, 4), ("res3", 128, 8), ("res4", 256, 16), ("res5", 512, 32)]),
        ("vit_small_patch16_224.dino", [("last_feat", 384, 16)]),
        ("vit_small_patch14_dinov2", [("last_feat", 384, 14)]),
        ("efficientvit_m0", [("res4", 64, 16), ("res5", 128, 32)]),
    ],
)
def test_maps(name, maps):
    assert [(level.name, level.channels, level.stride) for level in levels_of(name)] == maps


@pytest.mark.parametrize(
    "name, message",
    [
        ("vit_smal_patch16_224", "timm has no such network: did you mean vit_small_patch16_224, "),
        ("bert_base_uncased", "timm has no such network: "),
        ("", "timm has no such network: "),
        ("hf-hub:timm/resnet18", "timm has no such network: "),
        ("vit_small_patch16_224.nobody", "Invalid pretrained tag (nobody)"),
        ("crossvit_tiny_240", "its feature maps have neither strides of 4 to 32 nor a single one"),
        ("test_maxvit", "this network cannot take images of 256 x 320 pixels, and a detector's have any size: height"),
        ("mixer_s16_224", "this network cannot take images of 256 x 320 pixels"),
    ],
)
def test_what_is_refused(name, message):
    with pytest.raises(ValueError) as error:
        levels_of(name)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_names_and_weights_are_timms():
    """A plain timm model's tensors, without its classifier and final norm, are the network's: same names and shapes."""
    for name, left_out in (("test_vit", ("norm.", "head.")), ("test_convnext", ("head.",))):
        wanted = {k: v.shape for k, v in timm.create_model(name).state_dict().items() if not k.startswith(left_out)}
        assert {k: v.shape for k, v in build_network(name).state_dict().items()} == wanted


def test_nothing_is_loaded_and_no_generator_is_advanced_by_looking(monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    levels_of.cache_clear()
    torch.manual_seed(0)
    first = build_network("test_vit.r160_in1k").blocks[0].attn.qkv.weight
    torch.manual_seed(0)  # now the maps are known
    assert torch.equal(first, build_network("test_vit.r160_in1k").blocks[0].attn.qkv.weight)


def test_options():
    rates = [m.drop_prob for m in build_network("test_convnext", drop_path=0.3).modules() if hasattr(m, "drop_prob")]
    assert max(rates) == pytest.approx(0.3)
    # Swin's own default is 0.1
    kinds = {type(m).__name__ for m in build_network("swin_tiny_patch4_window7_224").modules()}
    assert "DropPath" not in kinds and "PaddedSwinBlock" in kinds
    assert isinstance(build_network("test_vit").norm, nn.Identity)
    assert isinstance(build_network("test_vit", final_norm=True).norm, nn.LayerNorm)
    for options, message in (({"drop_path": 0.1}, "vgg11 has no stochastic depth"), ({"final_norm": True}, "no norm")):
        with pytest.raises(ValueError, match=message):
            build_network("vgg11", **options)

"""Local learning on networks of timm: gradients against the double forward, in float64."""

import copy

import pytest
import torch
from double_forward import assert_same, assert_same_gradients, naive_losses
from tiny_learner import LOCO, OPTIONS, RULES, make
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from pretrain.encoders import build_encoder

SIDES = {"test_vit": 160, "test_vit2": 160, "test_convnext": 64, "regnetx_002": 64, "swin_tiny_patch4_window7_224": 64}
SWIN = "swin_tiny_patch4_window7_224"
CASES = [
    *((name, *case) for name in ("test_vit2", "test_convnext") for case in [
        ("loco", "plain", "info_nce"), ("loco", "recompute some", "info_nce"), ("gim", "recompute all", "info_nce"),
        ("loco", "upper gradient only", "info_nce"), ("end to end", "plain", "info_nce"),
        ("deep supervision", "recompute all", "info_nce"), ("sharing of one block", "plain", "barlow_twins"),
        ("gim", "noise", "barlow_twins"),  # blockwise Barlow Twins
    ]),
    (SWIN, "loco", "recompute some", "info_nce"), (SWIN, "gim", "noise", "barlow_twins"),
    ("regnetx_002", "loco", "recompute all", "info_nce"), ("regnetx_002", "gim", "noise", "barlow_twins"),
]  # fmt: skip


def encoder_of(name):
    torch.manual_seed(1)
    encoder = build_encoder(f"timm:{name}")
    for key, p in encoder.named_parameters():
        if p.ndim == 1 or key.endswith("cls_token"):  # not 1, 0 and almost 0: everything has a gradient that counts
            nn.init.normal_(p, 0.5, 0.3)
    return encoder


@pytest.mark.parametrize(("name", "rule", "option", "loss"), CASES)
def test_gradients_equal_the_double_forward(name, rule, option, loss):
    options = dict(OPTIONS[option])
    if option == "recompute some":
        options["recompute"] = ["res2", "res3[:1]", "res4[-1:]"]
    assert_same_gradients(RULES[rule], encoder_of(name), size=SIDES[name], loss=loss, **options)


def test_gradients_of_a_vit_by_hand():
    """LoCo written with timm's own modules: each unit from the tokens that it is given, the class token among them."""
    encoder = encoder_of("test_vit")
    learner = make(LOCO, encoder)
    other = copy.deepcopy(learner)
    views = torch.randn(8, 3, 160, 160, dtype=torch.float64)
    losses = learner.forward_backward(views)
    net, groups = other.encoder.network, ([0, 1], [2, 3], [4], [5])
    tokens, expected = net.norm_pre(net._pos_embed(net.patch_embed(views))), {}
    for lower, upper, top in zip(groups, groups[1:], ("res3", "res4", "res5"), strict=False):
        h = tokens = tokens if lower[0] == 0 else tokens.detach()
        for block in [*lower, *upper]:
            h = net.blocks[block](h)
            if block == lower[-1]:
                tokens = h  # the next unit's input
        h = h[:, 1:].reshape(8, 10, 10, 64).permute(0, 3, 1, 2)
        expected[top] = other.loss(*nn.Sequential(*list(other.decoders[top])[1:])(h).chunk(2))
    assert_same(learner, other, losses, expected)
    assert learner.encoder.network.cls_token.grad.norm() > 0


def test_recomputed_dropout_is_the_same():
    """Random draws of a block are those of its first forward pass."""
    encoder = encoder_of("test_vit")
    for block in encoder.network.blocks:
        block.attn.proj_drop.p = block.mlp.drop1.p = 0.3
    views, found = torch.randn(8, 3, 160, 160, dtype=torch.float64), []
    for recompute in ((), ["res2", "res3", "res4"]):
        learner = make(LOCO, copy.deepcopy(encoder), recompute=recompute)
        learner.forward_backward(views)
        found.append([p.grad for p in learner.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_chunks_channels_last_and_bfloat16(name):
    torch.manual_seed(1)
    learner = make(LOCO, build_encoder(f"timm:{name}"), loss="barlow_twins").float()
    views = torch.randn(64, 3, SIDES[name], SIDES[name])
    learner.eval()
    expected = copy.deepcopy(learner).forward_backward(views)
    last = copy.deepcopy(learner).to(memory_format=torch.channels_last)
    views = views.contiguous(memory_format=torch.channels_last)
    for got in (last.forward_backward(views), copy.deepcopy(last).forward_backward(views, chunk=8)):
        for key in expected:
            torch.testing.assert_close(got[key], expected[key], rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        got = last.forward_backward(views)
    for key in expected:
        assert abs(got[key] - expected[key]) < 0.1 * abs(expected[key]), key
        assert got[key] != expected[key]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["test_vit", pytest.param("test_convnext", marks=pytest.mark.slow)])
def test_compiled_gradients(name):
    learner = make(RULES["gim"], encoder_of(name))
    reference = copy.deepcopy(learner)
    graphs = []
    learner.compile(backend=lambda graph, inputs: graphs.append(graph) or aot_eager(graph, inputs))
    views = torch.randn(8, 3, SIDES[name], SIDES[name], dtype=torch.float64)
    losses = learner.forward_backward(views)
    assert_same(learner, reference, losses, naive_losses(reference, RULES["gim"], views))
    assert 1 < len(graphs) <= 8  # four stages and four decoders, without graph breaks; some have the same code


def test_views_must_be_square():
    with pytest.raises(ValueError, match="80 tokens of patches are no map: expected a square, as of square images"):
        make(LOCO, encoder_of("test_vit")).forward_backward(torch.randn(4, 3, 160, 128, dtype=torch.float64))

"""The gradients of the schedule against those of the double-forward formulation, in float64."""

import copy

import pytest
import torch
from double_forward import assert_same_gradients, blocks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_learner import LOCO, LOSSES, OPTIONS, RULES, TinyEncoder, make
from torch import nn

from pretrain.encoders import STAGE_NAMES, build_encoder


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_the_double_forward(rule, options):
    for loss in LOSSES:
        for training in (True, False):
            assert_same_gradients(RULES[rule], training=training, loss=loss, **OPTIONS[options])


@pytest.mark.parametrize("rule", ["gim", "end to end"])
def test_gradients_through_local_pooling(rule):
    assert_same_gradients(RULES[rule], loss="vicreg", pool_features=48, size=96)


def test_gradients_of_tied_copies():
    assert_same_gradients(RULES["gim"], ties=0.01)
    assert_same_gradients(RULES["gim"], ties=0.01, recompute=["res3"])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_gradients_of_any_units_equal_the_double_forward(data):
    """Any set of runs of blocks with distinct tops, any blocks recomputed."""
    parts = [f"{name}[{i}:{i + 1}]" for name in STAGE_NAMES for i in range(2)]
    tops = data.draw(st.sets(st.integers(0, 7), min_size=1, max_size=4))
    units = [parts[data.draw(st.integers(0, top)) : top + 1] for top in sorted(tops)]
    recompute = data.draw(st.lists(st.sampled_from(parts), unique=True))
    upper = data.draw(st.sampled_from(["all", "upper"]))
    assert_same_gradients(units, recompute=recompute, shared_gradient=upper, size=16, noise=0.1)


@pytest.mark.parametrize(
    ("name", "training", "loss"),
    [
        ("resnet50", True, "info_nce"),
        ("resnet50", False, "info_nce"),
        ("resnet50", True, "barlow_twins"),
        ("presnet50", True, "info_nce"),
        ("shufflenetv2_50", True, "info_nce"),
    ],
)
def test_gradients_of_the_papers_encoders(name, training, loss):
    torch.manual_seed(1)
    encoder = build_encoder(name)
    units = [list(pair) for pair in zip(encoder.stage_names, encoder.stage_names[1:], strict=False)]
    options = {"recompute": ["res2", "res3[:2]"], "training": training, "loss": loss}
    assert_same_gradients(units, encoder, bottleneck=True, size=64, **options)


def test_frozen_parameters_and_blocks_without_any():
    encoder = TinyEncoder()
    encoder.stages[0][0][0].requires_grad_(False)  # a frozen first conv, as some stems are
    for p in encoder.stages[1][0].parameters():
        p.requires_grad_(False)
    for recompute in ((), ["res2[:1]", "res3"]):
        assert_same_gradients(LOCO, copy.deepcopy(encoder), recompute=recompute)
    encoder.stages[0].insert(0, nn.AvgPool2d(2))  # a block with nothing to learn at the bottom of a unit
    assert_same_gradients(LOCO, encoder, recompute=["res2[:1]"])


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_reaches_its_unit_and_nothing_else(rule):
    """Replace one unit's loss at a time by a constant: only the blocks of that unit may notice."""
    units = RULES[rule]
    views = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def block_gradients(mute=None):
        learner = make(units)
        if mute:
            learner.decoders[mute].register_forward_hook(lambda _, __, output: output * 0 + 1)
        learner.forward_backward(views)
        return {
            (k, i): torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                               for p in block.parameters()])
            for k, stage in enumerate(learner.encoder.stages) for i, block in enumerate(stage)
        }  # fmt: skip

    full = block_gradients()
    for unit in units:
        muted = block_gradients(mute=unit[-1])
        inside = [b for part in unit for b in blocks_of(part, TinyEncoder())]
        for b in full:
            assert torch.equal(full[b], muted[b]) == (b not in inside), (unit, b)

"""What runs forward a second time gives the same output."""

import copy

import pytest
import torch
from tiny_learner import LOCO, TinyEncoder, make
from torch import nn

from pretrain.encoders import STAGE_NAMES


@pytest.mark.parametrize("chunk", [0, 2])
def test_dropout_is_the_same_when_it_runs_again(chunk):
    """An encoder may draw random numbers of its own; what runs forward twice must draw the same ones."""
    encoder, gradients = TinyEncoder(), []
    for stage in encoder.stages:
        stage[1].append(nn.Dropout(0.5))
    for recompute in ((), STAGE_NAMES):
        learner = make(LOCO, copy.deepcopy(encoder), recompute=recompute)
        torch.manual_seed(3)
        learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64), chunk=chunk)
        gradients.append([p.grad for p in learner.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_recomputation_under_autocast_changes_nothing():
    views = torch.randn(8, 3, 32, 32)
    gradients = []
    for recompute in ((), STAGE_NAMES):
        learner = make(LOCO, recompute=recompute).float()
        with torch.autocast("cpu", torch.bfloat16):
            learner.forward_backward(views)
            learner.forward_backward(views, chunk=2)
        gradients.append([p.grad for p in learner.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b) and a.norm() > 0

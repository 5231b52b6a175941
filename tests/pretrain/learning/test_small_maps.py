"""Convs on maps of few pixels against torch's own."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrain.config import get_cfg
from pretrain.learning import small_maps
from pretrain.learning.build import build_learner
from pretrain.learning.small_maps import SmallMapConv2d, use_small_map_convs


def gradients(conv, x):
    x = x.detach().requires_grad_()
    y = conv(x)
    seed = torch.sin(torch.arange(y.numel())).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, conv.weight], seed)]


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.integers(1, 7),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.integers(1, 4),
    last=st.booleans(),
)
def test_output_and_gradients_are_torchs(kernel, stride, padding, channels, sides, batch, last):
    if min(sides) + 2 * padding < kernel:
        return
    conv = nn.Conv2d(*channels, kernel, stride, padding, bias=False).double()
    x = torch.randn(batch, channels[0], *sides, dtype=torch.double)
    x = x.to(memory_format=torch.channels_last) if last else x
    ours = copy.deepcopy(conv)
    ours = use_small_map_convs(ours)
    assert type(ours) is SmallMapConv2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(small_maps.PIXELS, torch.double, 100)
        found = gradients(ours, x)
    for expected, mine in zip(gradients(conv, x), found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


def test_in_bfloat16_under_autocast():
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    ours, x = copy.deepcopy(conv), torch.randn(16, 64, 2, 2)
    ours = use_small_map_convs(ours)
    exact = gradients(conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        low, found = gradients(conv, x), gradients(ours, x)
    for true, theirs, mine in zip(exact, low, found, strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - true).norm() < 1.2 * (theirs - true).norm() + 1e-6  # no less exact than torch's


@pytest.fixture
def counted(monkeypatch):
    """Calls of the weight's gradient."""
    calls, real = [], small_maps.weight_gradient
    monkeypatch.setattr(small_maps, "weight_gradient", lambda *args: (calls.append(args), real(*args))[1])
    return calls


def test_only_where_it_is_faster_and_asked_for(counted):
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    conv = use_small_map_convs(conv)
    for side in (1, 2, 3, 4):
        conv(torch.randn(2, 3, side, side)).sum().backward()
        assert not counted and conv.weight.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        for side, expected in ((2, 1), (3, 2), (4, 2)):
            conv(torch.randn(2, 3, side, side)).sum().backward()
            assert len(counted) == expected
    counted.clear()
    x = torch.randn(2, 3, 2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x).sum()
    torch.autograd.grad(y, x, retain_graph=True)  # what the schedule asks of a shared stage first
    assert not counted
    torch.autograd.grad(y, conv.weight)
    assert len(counted) == 1
    with torch.no_grad():
        assert not conv(x).requires_grad


def test_at_the_edges_it_is_torchs(monkeypatch):
    monkeypatch.setitem(small_maps.PIXELS, torch.float32, 4)
    conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    conv = use_small_map_convs(conv)
    assert conv(torch.randn(2, 2, 2)).shape == (2, 2, 2)  # an image alone
    with pytest.raises(RuntimeError, match="same type|expected scalar type|Input type"):
        conv(torch.randn(1, 2, 2, 2).double())
    double = copy.deepcopy(conv).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            double(torch.randn(1, 2, 2, 2).double()).dtype
            == nn.Conv2d(2, 2, 1).double()(torch.randn(1, 2, 2, 2).double()).dtype
        )
    x = torch.randn(1, 2, 2, 2, requires_grad=True)
    gradient = torch.autograd.grad(conv(x).square().sum(), conv.weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):  # and no wrong second derivative
        gradient.sum().backward()


def test_other_convs_stay_as_they_are():
    others = [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, dilation=2, bias=False),
        nn.Conv2d(4, 4, (1, 3), bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
    ]
    net = nn.Sequential(*others)
    use_small_map_convs(net)
    assert all(type(conv) is nn.Conv2d for conv in net)


def test_the_learner_uses_them_on_the_cpu_uncompiled():
    for compiled in (False, True):
        cfg = get_cfg()
        cfg.MODEL.ENCODER, cfg.MODEL.COMPILE = "resnet18x0.25", compiled
        learner = build_learner(cfg)
        found = {type(module) for module in learner.modules() if isinstance(module, nn.Conv2d)}
        assert found == {nn.Conv2d if compiled else SmallMapConv2d}
    assert list(learner.encoder.state_dict()) == list(build_learner(cfg).encoder.state_dict())


class TwoNames(nn.Module):
    """A network that has one conv under two names, and one in a Sequential twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        self.rest = nn.Sequential(self.first, nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1, bias=False))
        self.rest.append(self.rest[2])

    def forward(self, x):
        return self.rest(self.first(x))


def test_what_replaces_a_conv_takes_over_all_that_it_has():
    net, calls = TwoNames().to(memory_format=torch.channels_last).eval(), []
    handle = net.first.register_forward_hook(lambda *_: calls.append("hook"))
    parameters, state, x = list(net.named_parameters()), net.state_dict(), torch.randn(2, 3, 2, 2)
    expected, drawn = net(x), torch.get_rng_state()
    assert use_small_map_convs(net) is net
    assert torch.equal(torch.get_rng_state(), drawn)  # seeds go on to give the same weights
    assert [type(m) for m in net.rest] == [SmallMapConv2d, nn.ReLU, SmallMapConv2d, SmallMapConv2d]
    assert net.first is net.rest[0] and net.rest[2] is net.rest[3]
    assert all(p is q for (_, p), (_, q) in zip(parameters, net.named_parameters(), strict=True))
    assert list(net.state_dict()) == list(state) and not any(module.training for module in net.modules())
    assert net.rest[2].weight.is_contiguous(memory_format=torch.channels_last)
    calls.clear()
    assert torch.equal(net(x), expected) and calls == ["hook"] * 2
    handle.remove()
    net(x)
    assert len(calls) == 2


def test_the_schedule_runs_the_convs_for_small_maps_and_ties_hold(counted):
    cfg = get_cfg()
    cfg.MODEL.ENCODER, cfg.MODEL.DEVICE = "resnet18x0.25", "cpu"
    cfg.MODEL.UNITS, cfg.MODEL.DECODER.STAGES, cfg.MODEL.DECODER.TIE = [["res4"], ["res5"]], 1, 0.1
    learner = build_learner(cfg)
    segments = [m for segment in learner.segments for m in segment.module.modules() if isinstance(m, nn.Conv2d)]
    assert {type(conv) for conv in segments} == {SmallMapConv2d}
    own = {id(parameter) for parameter in learner.parameters()}
    assert learner.ties and all({id(a), id(b)} <= own for a, b in learner.ties)
    with torch.autocast("cpu", torch.bfloat16):
        learner.forward_backward(torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert counted

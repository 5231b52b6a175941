"""The learner under autocast and torch.compile."""

import copy

import pytest
import torch
from double_forward import assert_same, naive_losses
from tiny_learner import LOCO, LOSSES, RULES, TinyEncoder, make
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from pretrain.encoders import STAGE_NAMES
from pretrain.learning.learner import LocalLearner


def test_under_autocast_the_gradient_of_the_loss_stays_in_float32():
    torch.manual_seed(0)
    decoders = {"res2": nn.Sequential(nn.Flatten(), nn.Linear(64, 8))}
    learner = LocalLearner(TinyEncoder(), [["res2"]], decoders, LOSSES["info_nce"])
    seen = []

    def watch(module, inputs, z):
        z.register_hook(lambda gradient: seen.append((z, gradient)))

    learner.decoders["res2"].register_forward_hook(watch)
    with torch.autocast("cpu", torch.bfloat16):
        learner.forward_backward(torch.randn(8, 3, 8, 8))
    ((z, gradient),) = seen
    z = z.detach().float().requires_grad_()
    learner.loss(*z.chunk(2)).backward()
    torch.testing.assert_close(gradient, z.grad.to(gradient.dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_and_channels_last_change_losses_by_rounding_only(loss):
    learner = make(LOCO, loss=loss).float()
    views = torch.randn(128, 3, 32, 32)
    expected = copy.deepcopy(learner).forward_backward(views)
    last = copy.deepcopy(learner).to(memory_format=torch.channels_last)
    got = last.forward_backward(views.contiguous(memory_format=torch.channels_last))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        got = last.forward_backward(views)
    for name in expected:
        assert abs(got[name] - expected[name]) < 0.03 * abs(expected[name]), name
        assert got[name] != expected[name]


@pytest.mark.parametrize(
    ("decoders", "named"),
    [(["res3", "res4"], "res3, res4"), (["res3", "res4", "res5", "res2"], "res3, res4, res5, res2"), ([], "none")],
)
def test_missing_and_extra_decoders_are_refused(decoders, named):
    with pytest.raises(ValueError, match=f"units res3, res4, res5; decoders {named}$"):
        LocalLearner(TinyEncoder(), LOCO, {name: nn.Identity() for name in decoders}, LOSSES["info_nce"])


def test_parameters_of_a_loss_get_gradients_but_are_never_ready():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, z1, z2):
            return self.scale * LOSSES["info_nce"](z1, z2)

    learner, final = make(LOCO), []
    learner.loss = Scaled()
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64), ready=final.extend)
    assert learner.loss.scale.grad > 0 and not any(p is learner.loss.scale for p in final)


@pytest.mark.parametrize("recompute", [(), STAGE_NAMES])
def test_a_decoder_that_stops_the_gradient_trains_only_itself(recompute):
    learner = make(RULES["gim"], recompute=recompute)
    for decoder in learner.decoders.values():
        decoder.register_forward_pre_hook(lambda _, inputs: inputs[0].detach())
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    assert all(p.grad is None for p in learner.encoder.parameters())
    assert all(p.grad is not None for p in learner.decoders.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", ["loco", pytest.param("gim", marks=pytest.mark.slow)])
def test_compiled_gradients(rule):
    learner = make(RULES[rule])
    reference = copy.deepcopy(learner)
    graphs = []
    learner.compile(backend=lambda graph, inputs: graphs.append(graph) or aot_eager(graph, inputs))
    views = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    losses = learner.forward_backward(views)
    assert_same(learner, reference, losses, naive_losses(reference, RULES[rule], views))
    learner.forward_backward(views, chunk=2)
    compiled = [segment.module._compiled_call_impl is not None for segment in learner.segments]
    assert compiled == ([True, False, False, True] if rule == "loco" else [True] * 4)
    modules = sum(compiled) + len(learner.decoders)
    assert len(graphs) >= 2 * modules > 8  # of chunks too: torch's limit of 8 for all of them together is lifted

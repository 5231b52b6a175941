"""The gradient schedule against the naive double-forward formulation, in float64."""

import copy
import functools
import weakref

import pytest
import torch
from torch import nn

from pretrain.decoders import Decoder
from pretrain.encoders import STAGE_NAMES, build_encoder
from pretrain.local import LocalLearner
from pretrain.losses import info_nce

LOSS = functools.partial(info_nce, temperature=0.2)
LOCO = [["res2", "res3"], ["res3", "res4"], ["res4", "res5"]]
RULES = {
    "loco": LOCO,
    "loco with a fourth loss": [["res2"], *LOCO],
    "gim": [[name] for name in STAGE_NAMES],
    "end to end": [list(STAGE_NAMES)],
    "deep supervision": [list(STAGE_NAMES[:k]) for k in range(1, 5)],
    "three stages deep": [["res2"], ["res2", "res3", "res4"], ["res3", "res4", "res5"]],
    "top two stages only": [["res4", "res5"]],
    "lower stages only": [["res2", "res3"]],
    "none": [],
}


class TinyEncoder(nn.Module):
    """Four stages with BN, as a ResNet's, in a few thousand parameters."""

    stage_names = STAGE_NAMES
    channels = (4, 6, 8, 8)

    def __init__(self):
        super().__init__()
        widths = [3, *self.channels]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o in zip(widths, self.channels, strict=False)
        )

    def forward(self, x):
        features = {}
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = features[name] = stage(x)
        return features


def make(units, encoder=None, bottleneck=False):
    torch.manual_seed(0)
    encoder = encoder or TinyEncoder()
    width = dict(zip(encoder.stage_names, encoder.channels, strict=True))
    decoders = {u[-1]: Decoder(width[u[-1]], bottleneck=bottleneck, hidden_dim=16, out_dim=8) for u in units}
    return LocalLearner(encoder, units, decoders, LOSS).double()


def naive_losses(learner, units, views):
    """Each unit runs its own forward pass on a detached input: the textbook formulation."""
    stages = dict(zip(learner.encoder.stage_names, learner.encoder.stages, strict=True))
    losses = {}
    for unit in units:
        x = views
        for name, stage in stages.items():
            if name == unit[0]:
                x = x.detach()
            x = stage(x)
            if name == unit[-1]:
                break
        losses[unit[-1]] = LOSS(*learner.decoders[unit[-1]](x).chunk(2))
    return losses


def assert_same_gradients(units, encoder=None, bottleneck=False, size=48):
    learner = make(units, encoder, bottleneck)
    reference = copy.deepcopy(learner)
    views = torch.randn(8, 3, size, size, dtype=torch.float64)
    losses = learner.forward_backward(views)
    expected = naive_losses(reference, units, views)
    if expected:
        sum(expected.values()).backward()
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss.detach(), rtol=1e-12, atol=0)
    for (name, p), q in zip(learner.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert (p.grad - q.grad).norm() <= 1e-10 * q.grad.norm() + 1e-300, name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_equal_the_double_forward(rule, training):
    encoder = TinyEncoder()
    encoder.train(training)
    assert_same_gradients(RULES[rule], encoder)


def test_gradients_of_resnet50_equal_the_double_forward():
    torch.manual_seed(1)
    assert_same_gradients(LOCO, build_encoder("resnet50"), bottleneck=True, size=64)


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_reaches_its_unit_and_nothing_else(rule):
    """Replace one unit's loss at a time by a constant: only the stages of that unit may notice."""
    units = RULES[rule]
    views = torch.randn(8, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def stage_gradients(mute=None):
        learner = make(units)
        if mute:
            learner.decoders[mute].register_forward_hook(lambda _, __, output: output * 0 + 1)
        learner.forward_backward(views)
        return [
            torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in s.parameters()])
            for s in learner.encoder.stages
        ]

    full = stage_gradients()
    for unit in units:
        for name, a, b in zip(STAGE_NAMES, full, stage_gradients(mute=unit[-1]), strict=True):
            assert torch.equal(a, b) == (name not in unit), (unit, name)


def test_one_forward_of_each_stage_and_one_update_of_bn():
    learner = make(LOCO)
    calls = []
    for name, stage in zip(STAGE_NAMES, learner.encoder.stages, strict=True):
        stage.register_forward_hook(lambda *_, name=name: calls.append(name))
    learner.forward_backward(torch.randn(8, 3, 48, 48, dtype=torch.float64))
    assert calls == list(STAGE_NAMES)
    assert all(m.num_batches_tracked == 1 for m in learner.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_graph_of_a_finished_stage_is_freed_before_the_next_stage_runs():
    """When res4 runs, nothing that the first stage saved for its backward may be alive: that saves the memory."""
    learner, saved, alive = make(LOCO), weakref.WeakSet(), {}
    bottom, forward = learner.encoder.stages[0], learner.encoder.stages[0].forward

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            saved.add(self)

    def watched(x):
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda s: s.tensor):
            return forward(x)

    bottom.forward = watched
    learner.encoder.stages[1].register_forward_pre_hook(lambda *_: alive.update(res3=len(saved)))
    learner.encoder.stages[2].register_forward_pre_hook(lambda *_: alive.update(res4=len(saved)))
    learner.forward_backward(torch.randn(8, 3, 48, 48, dtype=torch.float64))
    assert alive["res3"] > 0 and alive["res4"] == 0


def test_under_autocast_the_gradient_of_the_loss_stays_in_float32():
    torch.manual_seed(0)
    learner = LocalLearner(TinyEncoder(), [["res2"]], {"res2": nn.Sequential(nn.Flatten(), nn.Linear(64, 8))}, LOSS)
    seen = []

    def watch(module, inputs, z):
        z.register_hook(lambda gradient: seen.append((z, gradient)))

    learner.decoders["res2"].register_forward_hook(watch)
    with torch.autocast("cpu", torch.bfloat16):
        learner.forward_backward(torch.randn(8, 3, 8, 8))
    (z, gradient), = seen
    z = z.detach().float().requires_grad_()
    LOSS(*z.chunk(2)).backward()
    torch.testing.assert_close(gradient, z.grad.to(gradient.dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([["res2", "res4"]], "not a run of consecutive stages"),
        ([["res3", "res2"]], "not a run of consecutive stages"),
        ([["conv1"]], "not a run of consecutive stages"),
        ([[]], "not a run of consecutive stages"),
        ([["res2", "res3"], ["res3"]], "two units end at res3"),
    ],
)
def test_units_that_cannot_be(units, message):
    with pytest.raises(ValueError, match=message):
        LocalLearner(TinyEncoder(), units, {}, LOSS)

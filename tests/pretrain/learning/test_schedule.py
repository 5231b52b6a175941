"""The order of the passes, and what is freed when."""

import copy
import weakref

import pytest
import torch
from tiny_learner import LOCO, OPTIONS, RULES, make
from torch import nn

from pretrain.learning.tape import TapeEntry


def test_one_forward_of_each_stage_and_one_more_of_what_is_recomputed():
    learner = make(LOCO, recompute=["res2"])
    calls = []
    for k, stage in enumerate(learner.encoder.stages):
        for i, module in enumerate(stage):
            module.register_forward_hook(lambda *_, name=f"res{k + 2}.{i}": calls.append(name))
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    assert calls == ["res2.0", "res2.1", "res3.0", "res3.1", "res2.1", "res2.0", "res4.0", "res4.1", "res5.0", "res5.1"]


@pytest.mark.parametrize(("recompute", "first"), [((), True), (["res2"], False)])
def test_graphs_are_freed_before_the_next_stage_runs(recompute, first):
    """When res4 runs, nothing that res2 saved for its backward pass may be alive; recomputed stages save nothing."""
    learner, saved, alive = make(LOCO, recompute=recompute), weakref.WeakSet(), {}

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            saved.add(self)

    def watch(module):
        forward = module.forward

        def watched(x):
            with torch.autograd.graph.saved_tensors_hooks(Saved, lambda s: s.tensor):
                return forward(x)

        module.forward = watched

    for module in learner.encoder.stages[0]:
        watch(module)
    learner.encoder.stages[1][0].register_forward_pre_hook(lambda *_: alive.update(res3=len(saved)))
    learner.encoder.stages[2][0].register_forward_pre_hook(lambda *_: alive.update(res4=len(saved)))
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    assert (alive["res3"] > 0) == first and alive["res4"] == 0


@pytest.mark.parametrize("recompute", [(), ["res2", "res4"]])
@pytest.mark.parametrize("rule", ["loco", "end to end", "three stages deep"])
def test_a_gradient_at_an_output_is_freed_during_the_pass_that_uses_it(rule, recompute, monkeypatch):
    """When the pass reaches the segment's lowest parameter or input, unless it is kept for the full backward pass."""
    alive = []

    def watch(method, lowest_of):
        real = getattr(TapeEntry, method)

        def watched(entry, *args, **kwargs):
            gradient, is_kept = weakref.ref(entry.gradient), entry.gradient is entry.accumulated
            handle = lowest_of(entry)(lambda _: alive.append((method, gradient() is not None and not is_kept)))
            try:
                return real(entry, *args, **kwargs)
            finally:
                handle.remove()

        monkeypatch.setattr(TapeEntry, method, watched)

    watch("input_gradient", lambda entry: entry.input.register_hook)
    watch("full_backward", lambda entry: next(entry.segment.module.parameters()).register_post_accumulate_grad_hook)
    learner = make(RULES[rule], recompute=recompute)
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    expected = {"full_backward"} if rule == "end to end" else {"full_backward", "input_gradient"}
    assert {method for method, _ in alive} == expected
    assert not any(still for _, still in alive), alive


@pytest.mark.parametrize("rule", ["loco", "gim", "end to end"])
def test_gradients_are_ready_once_and_as_early_as_can_be(rule):
    learner, order, early = make(RULES[rule]), [], []
    names = {id(p): name for name, p in learner.named_parameters()}
    for k, stage in enumerate(learner.encoder.stages):
        stage[0].register_forward_pre_hook(lambda *_, k=k: early.append((k, len(order))))

    def ready(parameters):
        order.extend(names[id(p)] for p in parameters if p.grad is not None)
        final.update({names[id(p)]: p.grad.clone() for p in parameters if p.grad is not None})

    final = {}
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64), ready=ready)
    assert len(order) == len(set(order))
    assert set(order) == {name for name, p in learner.named_parameters() if p.grad is not None}
    for name, p in learner.named_parameters():
        assert p.grad is None or torch.equal(final[name], p.grad)
    assert (dict(early)[3] > 0) == (rule != "end to end")  # something is ready when the last stage begins


@pytest.mark.parametrize("options", OPTIONS)
def test_bn_is_updated_once_a_step(options):
    learner = make(LOCO, **OPTIONS[options])
    once = copy.deepcopy(learner.encoder)
    views = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    learner.forward_backward(views)
    x = views
    for stage in once.stages:
        x = stage(x)
    norms = [m for m in learner.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(m.num_batches_tracked == 1 for m in norms) and all(m.track_running_stats for m in norms)
    if not learner.noise:
        for a, b in zip(learner.encoder.buffers(), once.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)

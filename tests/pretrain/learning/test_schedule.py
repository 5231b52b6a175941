"""The order of the passes, and what is freed when."""

import copy
import weakref

import pytest
import torch
from tiny_learner import LOCO, OPTIONS, RULES, make
from torch import nn

from pretrain.encoders import STAGE_NAMES
from pretrain.learning.segments import Segment
from pretrain.learning.tape import TapeEntry


def test_one_forward_of_each_stage_and_one_more_of_what_is_recomputed():
    learner = make(LOCO, recompute=["res2"])
    calls = []
    for k, stage in enumerate(learner.encoder.stages):
        for i, module in enumerate(stage):
            module.register_forward_hook(lambda *_, name=f"res{k + 2}.{i}": calls.append(name))
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    assert calls == ["res2.0", "res2.1", "res3.0", "res3.1", "res2.1", "res2.0", "res4.0", "res4.1", "res5.0", "res5.1"]


@pytest.mark.parametrize(
    ("units", "first", "second"),
    [
        ([["res3"], ["res3", "res4"]], [], [(1, "full_backward")]),  # the first loss runs no pass in res3
        (RULES["a unit inside another"], [], [(1, "input_gradient"), (1, "full_backward"), (0, "full_backward")]),
    ],
)
def test_the_two_cases_that_loco_does_not_have(units, first, second, monkeypatch):
    """(stage, pass) below res4, for the loss of res3 and the loss of res4."""
    passes, rows = [], []

    def watch(method):
        real = getattr(TapeEntry, method)

        def watched(entry, *args, **kwargs):
            passes.append((entry.segment.index, method))
            return real(entry, *args, **kwargs)

        monkeypatch.setattr(TapeEntry, method, watched)

    watch("input_gradient")
    watch("full_backward")
    learner = make(units)

    def end_row(_):
        rows.append([entry for entry in passes if entry[0] < 2])
        passes.clear()

    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64), ready=end_row)
    assert rows == [first, second]


def watch_saved_tensors(blocks):
    """A weak set of what the graphs of some blocks hold."""
    saved = weakref.WeakSet()

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # an output that ReLU saves would hold its own graph
            saved.add(self)

    def watch(module):
        forward = module.forward

        def watched(x):
            with torch.autograd.graph.saved_tensors_hooks(Saved, lambda s: s.tensor):
                return forward(x)

        module.forward = watched

    for block in blocks:
        watch(block)
    return saved


@pytest.mark.parametrize(("recompute", "first"), [((), True), (["res2"], False)])
def test_graphs_are_freed_before_the_next_stage_runs(recompute, first):
    """When res4 runs, nothing that res2 saved for its backward pass may be alive; recomputed stages save nothing."""
    learner, alive = make(LOCO, recompute=recompute), {}
    saved = watch_saved_tensors(learner.encoder.stages[0])
    learner.encoder.stages[1][0].register_forward_pre_hook(lambda *_: alive.update(res3=len(saved)))
    learner.encoder.stages[2][0].register_forward_pre_hook(lambda *_: alive.update(res4=len(saved)))
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    assert (alive["res3"] > 0) == first and alive["res4"] == 0


@pytest.mark.parametrize("rule", ["loco", "a loss without a pass"])
@pytest.mark.parametrize("recompute", [(), ["res3"], ["res3[1:]"]])
def test_a_recomputed_stage_has_no_graph_when_the_stage_above_its_loss_runs(rule, recompute):
    """Also if its own loss runs no pass there."""
    learner = make(LOCO if rule == "loco" else [["res3"], ["res3", "res4"]], recompute=recompute)
    saved, alive = watch_saved_tensors(learner.encoder.stages[1][1:]), []
    learner.encoder.stages[2][0].register_forward_pre_hook(lambda *_: alive.append(len(saved)))
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    assert len(alive) == 1 and (alive[0] == 0) == bool(recompute)


@pytest.mark.parametrize(("units", "kept"), [([["res5"]], []), ([["res4", "res5"]], ["res3"]), ([], [])])
def test_what_no_loss_reaches_leaves_nothing(units, kept):
    """When the last block runs: of the images and the outputs below res4 only the input of a unit is alive."""
    learner, memory, alive = make(units), {}, []

    def on_memory_of_its_own(name, tensor):
        array = tensor.detach().numpy().copy()
        memory[name] = weakref.ref(array)  # dies with the last tensor that shares the array, views included
        return torch.from_numpy(array)

    for name, stage in zip(STAGE_NAMES[:2], learner.encoder.stages, strict=False):
        stage[-1].register_forward_hook(lambda _, __, output, name=name: on_memory_of_its_own(name, output))
    last_block = learner.encoder.stages[3][1]
    last_block.register_forward_pre_hook(
        lambda *_: alive.extend(n for n, array in memory.items() if array() is not None)
    )
    views = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    learner.forward_backward(views, prepare=lambda views: on_memory_of_its_own("images", views))
    assert set(memory) == {"images", "res2", "res3"} and alive == kept


@pytest.mark.parametrize("rule", ["loco", "end to end", "a unit inside another"])
def test_the_output_of_a_second_forward_is_freed_during_the_pass(rule, monkeypatch):
    """When the pass reaches the segment's input, unless another pass follows on the same graph."""
    real_forward, made, alive = Segment.forward, {}, []

    def watched_forward(segment, *args, **kwargs):
        output = real_forward(segment, *args, **kwargs)
        made[segment.index] = weakref.ref(output)
        return output

    def watched(method):
        real = getattr(TapeEntry, method)

        def run(entry, *args, **kwargs):
            def at_input(_):
                is_kept = entry.output is not None
                alive.append((method, made[entry.segment.index]() is not None and not is_kept))

            handle = entry.input.register_hook(at_input) if entry.input.requires_grad else None
            try:
                return real(entry, *args, **kwargs)
            finally:
                if handle:
                    handle.remove()

        return run

    monkeypatch.setattr(Segment, "forward", watched_forward)
    for method in ("input_gradient", "full_backward"):
        monkeypatch.setattr(TapeEntry, method, watched(method))
    learner = make(RULES[rule], recompute=STAGE_NAMES)
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    assert alive and not any(still for _, still in alive), alive


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

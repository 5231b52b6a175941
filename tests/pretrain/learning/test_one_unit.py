"""One unit that learns alone, on frozen stages: against the formula, and what runs and what does not."""

import copy

import pytest
import torch
from tiny_learner import LOCO, OPTIONS, RULES, TinyEncoder, make
from torch._dynamo.backends.debugging import aot_eager

from pretrain.encoders import STAGE_NAMES
from pretrain.learning.noise import add_noise

PAIRS = [["res2", "res3"], ["res4", "res5"]]
SLICES = [["res2", "res3[:1]"], ["res3[1:]"], ["res4", "res5"]]


def views(size=32):
    return torch.randn(8, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def moved(learner):
    """A learner whose BN averages are not those of a new one."""
    for module in learner.modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return learner


def by_hand(learner, unit, x):
    """The loss of a unit: the blocks below in evaluation mode, without a graph; its own in training mode, with one."""
    below = True
    blocks = [(s, i, block) for s, stage in enumerate(learner.encoder.stages) for i, block in enumerate(stage)]
    own = [block for segment in learner.segments if segment.losses == (unit,) for block in segment.blocks]
    for number, (s, i, block) in enumerate(blocks[: own[-1] + 1]):
        if number == own[0]:
            below, x = False, x.detach()
        with torch.set_grad_enabled(not below):
            block.train(not below)
            x = block(x)
            if i == len(learner.encoder.stages[s]) - 1 and learner.noise:
                x = add_noise(x, learner.noise)
    return learner.loss(*learner.decoders[unit](x).chunk(2))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("units", [RULES["gim"], PAIRS, SLICES], ids=["gim", "pairs", "slices"])
@pytest.mark.parametrize("loss", ["barlow_twins", "vicreg"])
def test_gradients_of_one_unit(units, options, loss):
    for unit in units:
        learner = moved(make(units, loss=loss, **OPTIONS[options]))
        reference = copy.deepcopy(learner)
        state = torch.get_rng_state()
        losses = learner.forward_backward(views(), only=unit[-1])
        torch.set_rng_state(state)
        expected = by_hand(reference, unit[-1], views())
        expected.backward()
        assert list(losses) == [unit[-1]]
        torch.testing.assert_close(losses[unit[-1]], expected.detach(), rtol=1e-12, atol=0)
        own = {id(p) for segment in learner.segments if segment.losses == (unit[-1],)
               for p in segment.module.parameters()}  # fmt: skip
        own |= {id(p) for p in learner.decoders[unit[-1]].parameters() if p.requires_grad}
        for (name, p), q in zip(learner.named_parameters(), reference.parameters(), strict=True):
            assert (p.grad is not None) == (id(p) in own) == (q.grad is not None), name
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-13)
        for (name, a), b in zip(learner.named_buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=name)


def test_what_runs_and_how():
    learner, ran = make(RULES["gim"], noise=0.1), []

    def note(stage):
        def hook(module, inputs, output):
            assert inputs[0].grad_fn is None
            ran.append((stage, module.training, torch.is_grad_enabled(), output.requires_grad))

        return hook

    for name, stage in zip(STAGE_NAMES, learner.encoder.stages, strict=True):
        stage[0].register_forward_hook(note(name))
    for decoder in learner.decoders.values():
        decoder.register_forward_hook(lambda *_: ran.append("decoder"))
    before = {name: value.clone() for name, value in learner.named_buffers()}
    learner.forward_backward(views(), only="res4")
    assert ran == [("res2", False, False, False), ("res3", False, False, False), ("res4", True, True, True), "decoder"]
    assert all(module.training for module in learner.modules())  # as it was
    changed = {name for name, value in learner.named_buffers() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(("encoder.stages.2.", "decoders.res4."))}
    learner.encoder.stages[0][0].eval()  # frozen by the user
    learner.forward_backward(views(), only="res4")
    assert not learner.encoder.stages[0][0].training and learner.encoder.stages[0][1].training


def test_what_is_kept_for_the_backward_pass():
    """The graph of one stage, not those of the stages below."""

    def saved(learner, only):
        found = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t.shape) or t, lambda t: t):
            learner.forward_backward(views(), only=only)
        return len(found)

    counts = [saved(make(RULES["gim"]), unit) for unit in STAGE_NAMES]
    assert sum(counts) == saved(make(RULES["gim"]), None) and max(counts) == min(counts)


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_chunks_of_one_unit(noise):
    learner = moved(make(RULES["gim"], noise=noise)).eval()
    reference = copy.deepcopy(learner)
    found, expected = (a.forward_backward(views(), chunk, only="res4") for a, chunk in ((learner, 2), (reference, 0)))
    torch.testing.assert_close(found, expected)
    for p, q in zip(learner.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    learner.train()
    learner.zero_grad()
    learner.forward_backward(views(), 2, only="res4")
    batches = [stage[0][1].num_batches_tracked.item() for stage in learner.encoder.stages]
    assert batches == [0, 0, 2, 0]


def test_only_the_parameters_of_the_unit_become_ready():
    learner, final = make(PAIRS), []
    learner.forward_backward(views(), ready=final.append, only="res5")
    (parameters,) = final
    expected = [*learner.decoders["res5"].parameters(), *learner.encoder.stages[2:].parameters()]
    assert {id(p) for p in parameters} == {id(p) for p in expected}


def test_bfloat16_of_one_unit():
    learner = make(RULES["gim"], loss="vicreg").float()
    x = torch.randn(128, 3, 32, 32)
    expected = copy.deepcopy(learner).forward_backward(x, only="res4")["res4"]
    with torch.autocast("cpu", torch.bfloat16):
        found = learner.forward_backward(x, only="res4")["res4"]
    assert found != expected and abs(found - expected) < 0.03 * abs(expected) and found.dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
def test_compiled_stages_are_those_of_the_whole_plan():
    learner = moved(make(RULES["gim"]))
    reference = copy.deepcopy(learner)
    graphs = []
    learner.compile(backend=lambda graph, inputs: graphs.append(graph) or aot_eager(graph, inputs))
    found, expected = (a.forward_backward(views(), only="res3") for a in (learner, reference))
    torch.testing.assert_close(found, expected)
    count = len(graphs)
    assert count >= 3  # two stages and a decoder
    learner.forward_backward(views(), only="res3")
    assert len(graphs) == count  # evaluation mode does not compile again


@pytest.mark.parametrize(
    ("units", "ties", "only", "why"),
    [
        (LOCO, 0.0, "res4", "res3 is in the units of res3 and res4, whose gradients it needs at once: only units that"),
        ([["res2"], ["res4", "res5"]], 0.0, "res5", "no unit contains res3, which would never run in training mode"),
        ([["res2"], ["res3"]], 0.0, "res3", "no unit contains res4"),
        (RULES["gim"], 1.0, "res4", "MODEL.DECODER.TIE ties decoders to stages that do not run yet"),
        (RULES["gim"], 0.0, "res9", "no unit ends at res9: res2, res3, res4, res5"),
    ],
)
def test_what_cannot_learn_alone(units, ties, only, why):
    with pytest.raises(ValueError, match=why):
        make(units, TinyEncoder(), ties=ties).forward_backward(views(), only=only)

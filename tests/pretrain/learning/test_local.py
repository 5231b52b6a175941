"""The gradient schedule against the naive double-forward formulation, in float64."""

import copy
import functools
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from pretrain.encoders import STAGE_NAMES, build_encoder
from pretrain.learning.decoders import Decoder
from pretrain.learning.learner import LocalLearner
from pretrain.learning.losses import barlow_twins, info_nce

LOSSES = {
    "info_nce": functools.partial(info_nce, temperature=0.2),
    "barlow_twins": functools.partial(barlow_twins, lambd=0.005),
}
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
    "sharing of one block": [["res2", "res3[:1]"], ["res3", "res4[:1]"], ["res4", "res5[:1]"], ["res5"]],
    "overlap from below": [["res2", "res3"], ["res3[-1:]", "res4"], ["res4[1:]", "res5"]],
    "none": [],
}
OPTIONS = {
    "plain": {},
    "upper gradient only": {"shared_gradient": "upper"},
    "noise": {"noise": 0.25},
    "recompute all": {"recompute": STAGE_NAMES},
    "recompute some": {"recompute": ["res2", "res3[:1]", "res4[1:]"], "noise": 0.1},
}


def block(i, o, stride):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class TinyEncoder(nn.Module):
    """Four stages of two blocks with BN, as a ResNet's, in a few thousand parameters."""

    stage_names = STAGE_NAMES
    channels = (4, 6, 8, 8)

    def __init__(self):
        super().__init__()
        widths = [3, *self.channels]
        self.stages = nn.ModuleList(
            nn.Sequential(block(i, o, 2), block(o, o, 1)) for i, o in zip(widths, self.channels, strict=False)
        )


def make(units, encoder=None, bottleneck=False, loss="info_nce", ties=0.0, **options):
    torch.manual_seed(0)
    encoder = encoder or TinyEncoder()
    width = dict(zip(encoder.stage_names, encoder.channels, strict=True))
    decoders, tied = {}, []
    for unit in units:
        decoders[unit[-1]] = Decoder(width[unit[-1][:4]], bottleneck=bottleneck, hidden_dim=16, out_dim=8)
    if ties:  # the first unit's decoder begins with a copy of the next stage
        stage = copy.deepcopy(encoder.stages[1])
        decoders["res2"] = nn.Sequential(stage, Decoder(width["res3"], bottleneck=bottleneck, hidden_dim=16, out_dim=8))
        for p in stage.parameters():
            nn.init.normal_(p, std=0.2)
        tied = zip(stage.parameters(), encoder.stages[1].parameters(), strict=True)
    return LocalLearner(encoder, units, decoders, LOSSES[loss], ties=tied, tie_weight=ties, **options).double()


def blocks_of(part, encoder):
    """(stage, block) pairs of "res3" or "res3[:1]"."""
    name, _, cut = part.partition("[")
    k = list(encoder.stage_names).index(name)
    return [(k, i) for i in eval(f"list(range({len(encoder.stages[k])}))" + (f"[{cut}" if cut else ""))]


def naive_embeddings(learner, units, views, state=None):
    """Each unit runs its own forward pass from the image on, on a detached input: the textbook formulation."""
    encoder, found = learner.encoder, {}
    spans = {unit[-1]: [b for part in unit for b in blocks_of(part, encoder)] for unit in units}
    by_height = sorted(spans, key=lambda top: spans[top][-1])
    last_unit = {b: top for top in by_height for b in spans[top]}
    for top, span in spans.items():
        x = views
        if state is not None:
            torch.set_rng_state(state)  # every stage's noise is the same, whichever unit looks at it
        for k, stage in enumerate(encoder.stages):
            for i, module in enumerate(stage):
                if (k, i) == span[0]:
                    x = x.detach()
                if learner.shared_gradient == "upper" and last_unit.get((k, i)) != top:
                    module = copy.deepcopy(module).requires_grad_(False)  # the gradient passes, but trains nothing
                x = module(x)
                if i == len(stage) - 1 and learner.noise and learner.training:
                    noise = torch.randn(x.permute(0, 2, 3, 1).shape, dtype=x.dtype).permute(0, 3, 1, 2)
                    x = x + learner.noise * x.std() * noise
                if (k, i) == span[-1]:
                    found[top] = learner.decoders[top](x)
                    break
            if top in found:
                break
    return found


def naive_losses(learner, units, views, state=None):
    losses = {n: learner.loss(*z.chunk(2)) for n, z in naive_embeddings(learner, units, views, state).items()}
    if learner.ties:
        losses["tie"] = learner.tie_weight * sum(((a - b) ** 2).sum() for a, b in learner.ties)
    return losses


def assert_same(learner, reference, losses, expected):
    if expected:
        sum(expected.values()).backward()
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss.detach(), rtol=1e-12, atol=1e-14)
    whole = sum(q.grad.norm() for q in reference.parameters() if q.grad is not None)
    for (name, p), q in zip(learner.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:  # a bias that a normalisation follows has no gradient but rounding
            assert (p.grad - q.grad).norm() <= 1e-10 * q.grad.norm() + 1e-15 * whole, name


def assert_same_gradients(units, encoder=None, bottleneck=False, size=32, training=True, **options):
    learner = make(units, encoder, bottleneck, **options).train(training)
    reference = copy.deepcopy(learner)
    views = torch.randn(8, 3, size, size, dtype=torch.float64)
    state = torch.get_rng_state()
    losses = learner.forward_backward(views)
    assert_same(learner, reference, losses, naive_losses(reference, units, views, state))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_the_double_forward(rule, options):
    for loss in LOSSES:
        for training in (True, False):
            assert_same_gradients(RULES[rule], training=training, loss=loss, **OPTIONS[options])


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


def test_chunks_and_whole_batch_see_the_same_dropout():
    """With one image a chunk the embeddings of the first pass must be those that the second pass goes back through."""
    encoder = TinyEncoder()
    encoder.stages[1][1].append(nn.Dropout(0.5))
    learner, seen = make([["res2", "res3"]], encoder), []
    learner.decoders["res3"].register_forward_hook(lambda _, __, z: seen.append(z.detach()))
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64), chunk=2)
    assert len(seen) == 4 and torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_views_are_prepared_a_chunk_at_a_time():
    views, sizes = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8), []
    learner = make(LOCO).eval()
    reference = copy.deepcopy(learner)

    def prepare(piece):
        sizes.append(len(piece))
        return piece.double() / 128 - 1

    losses = learner.forward_backward(views, chunk=2, prepare=prepare)
    assert sizes == [4, 4, 2] * 2
    assert_same(learner, reference, losses, naive_losses(reference, LOCO, views.double() / 128 - 1))


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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_have_the_gradients_of_the_whole_batch(rule, loss):
    """GradCache: with BN in evaluation mode the batch may be cut at will; the last chunk is smaller."""
    units, views = RULES[rule], torch.randn(10, 3, 32, 32, dtype=torch.float64)
    learner = make(units, loss=loss, recompute=["res3"]).eval()
    reference = copy.deepcopy(learner)
    assert_same(learner, reference, learner.forward_backward(views, chunk=2), naive_losses(reference, units, views))


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_chunks_in_training_normalise_by_themselves(noise):
    """The gradient is that of a network whose BN sees one chunk at a time, under the loss of the whole batch."""
    learner = make(LOCO, noise=noise)
    reference = copy.deepcopy(learner)
    views = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    state = torch.get_rng_state()
    losses = learner.forward_backward(views, chunk=2)
    parts = {name: [] for name in losses}
    for c in (slice(0, 2), slice(2, 4)):
        piece = torch.cat([half[c] for half in views.chunk(2)])
        for name, z in naive_embeddings(reference, LOCO, piece, state).items():
            parts[name].append(z.unflatten(0, (2, -1)))
        torch.set_rng_state(state)
        for size in (16, 8, 4, 2):  # as much noise as the four stages have drawn
            torch.randn(4, {16: 4, 8: 6, 4: 8, 2: 8}[size], size, size, dtype=torch.float64)
        state = torch.get_rng_state()
    expected = {name: reference.loss(*torch.cat(z, dim=1)) for name, z in parts.items()}
    assert_same(learner, reference, losses, expected)
    assert learner.encoder.stages[0][0][1].num_batches_tracked == 2


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


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([["res2", "res4"]], "not a run of consecutive stages"),
        ([["res3", "res2"]], "not a run of consecutive stages"),
        ([["res2[:1]", "res3"]], "not a run of consecutive stages"),
        ([[]], "not a run of consecutive stages"),
        ([["conv1"]], "'conv1' is not a stage, or a slice of one such as res5"),
        ([["res3[5:]"]], "is empty: res3 has 2 blocks"),
        ([["res2", "res3"], ["res3"]], "two units end at res3"),
    ],
)
def test_units_that_cannot_be(units, message):
    with pytest.raises(ValueError, match=message):
        LocalLearner(TinyEncoder(), units, {}, None)
    with pytest.raises(ValueError, match="choose all or upper"):
        LocalLearner(TinyEncoder(), [], {}, None, shared_gradient="lower")

"""The gradients of several devices against those of one, in float64."""

import itertools

import pytest
import torch
from devices import run_devices
from tiny_learner import LOCO, LOSSES, OPTIONS, RULES, make

from pretrain.encoders import build_encoder

SPLITS = {
    "2": [["res2", "res3"], ["res4", "res5"]],
    "3": [["res2"], ["res3", "res4"], ["res5"]],
    "4": [["res2"], ["res3"], ["res4"], ["res5"]],
    "inside a stage": [["res2", "res3[:1]"], ["res3[1:]", "res4", "res5"]],
    "every block": [[f"res{k}[{i}:{i + 1}]"] for k in (2, 3, 4, 5) for i in (0, 1)],
}
VIEWS = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
STEPS = 2


def train(learner, step, steps=STEPS):
    """SGD with momentum for a few steps, of which ``step(seed)`` is forward and backward; losses of the last one."""
    optimizer = torch.optim.SGD([p for p in learner.parameters() if not p.is_meta], 0.1, momentum=0.9)
    for number in range(steps):
        torch.manual_seed(number)
        losses = step()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def of_devices(units, split, steps=STEPS, views=VIEWS, autocast=False, **options):
    """Losses and state of all devices together, and what was sent."""
    learners = [make(units, split=split, **options) for _ in split]
    if autocast:
        learners = [learner.float() for learner in learners]
    losses = {}

    def work(share, ports):
        share.drop_others()

        def step():
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return share.forward_backward(ports, views if share.is_lowest else None)

        losses.update(train(share.learner, step, steps))

    ports = run_devices(learners, work)
    states = [{k: v for k, v in learner.state_dict().items() if not v.is_meta} for learner in learners]
    assert sum(map(len, states)) == len(learners[0].state_dict())  # each tensor is on one device
    return losses, {k: v for state in states for k, v in state.items()}, [p.sent for p in ports]


def of_one(units, steps=STEPS, **options):
    learner = make(units, **options)
    return train(learner, lambda: learner.forward_backward(VIEWS), steps), learner.state_dict()


LOCAL_RULES = [rule for rule in RULES if rule != "end to end"]
CASES = [("loco", split, option) for split in SPLITS for option in OPTIONS] + [
    (rule, split, option)  # the options take turns: all of them with all rules would take minutes
    for (rule, split), option in zip(itertools.product(LOCAL_RULES, SPLITS), itertools.cycle([*OPTIONS, "plain"]))
]


@pytest.mark.parametrize(("rule", "split", "options"), CASES)
def test_several_devices_learn_what_one_does(rule, split, options):
    loss = "barlow_twins" if options == "noise" else "info_nce"
    expected, state = of_one(RULES[rule], loss=loss, **OPTIONS[options])
    losses, found, _ = of_devices(RULES[rule], SPLITS[split], loss=loss, **OPTIONS[options])
    assert losses.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-10, atol=0)
    for name, value in state.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-11, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_at_stages_the_bits_are_the_same(loss):
    _, state = of_one(LOCO, loss=loss, noise=0.25)
    _, found, _ = of_devices(LOCO, SPLITS["4"], loss=loss, noise=0.25)
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("rule", "split", "gradients"),
    [("loco", "2", [0, 1]), ("loco", "4", [0, 1, 1, 1]), ("gim", "4", [0] * 4), ("loco", "inside a stage", [0, 2]),
     ("three stages deep", "4", [0, 1, 2, 1]), ("deep supervision", "4", [0, 3, 2, 1])],
)  # fmt: skip
def test_what_is_sent_in_a_step(rule, split, gradients):
    _, _, sent = of_devices(RULES[rule], SPLITS[split], steps=1)
    assert [count["gradient"] for count in sent] == gradients
    assert [count["activation"] for count in sent] == [1] * (len(sent) - 1) + [0]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_a_network_of_timm_on_two_devices(name, late):
    """A cut inside a stage, noise, and late gradients, which replace the parameters of a stage by copies."""
    split = [["res2", "res3[:1]"], ["res3[1:]", "res4", "res5"]]
    side = {"test_vit": 160, "test_convnext": 64}[name]
    views = torch.randn(8, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def learner_of(**options):
        torch.manual_seed(0)
        return make(LOCO, build_encoder(f"timm:{name}"), noise=0.1, **options)

    one = learner_of()
    expected = train(one, lambda: one.forward_backward(views), 1)
    learners, losses = [learner_of(split=split) for _ in split], {}

    def work(share, ports):
        share.drop_others()
        losses.update(
            train(share.learner, lambda: share.forward_backward(ports, views if share.is_lowest else None), 1)
        )
        if late:
            share.drain(ports)

    run_devices(learners, work, late)
    for key in expected:
        torch.testing.assert_close(losses[key], expected[key], rtol=1e-10, atol=0)
    found = {k: v for learner in learners for k, v in learner.state_dict().items() if not v.is_meta}
    assert found.keys() == one.state_dict().keys()
    reached = {id(p) for segment in learners[0].segments[:2] for p in segment.module.parameters()} if late else set()
    late_names = {k for k, p in learners[0].named_parameters() if id(p) in reached}
    for key, value in one.state_dict().items():
        if key not in late_names:
            torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-11, msg=key)
    if late:  # what the losses above teach has come afterwards
        assert any(p.grad is not None for k, p in learners[0].named_parameters() if k in late_names)


def test_bfloat16():
    learner = make(LOCO).float()

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            return learner.forward_backward(VIEWS.float())

    train(learner, step)
    _, found, _ = of_devices(LOCO, SPLITS["3"], views=VIEWS.float(), autocast=True)
    for name, value in learner.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("units", "options", "late", "why"),
    [
        ([["res2", "res3", "res4", "res5"]], {}, False, "the unit of res5 has all stages: end-to-end learning"),
        (RULES["gim"], {"ties": 1.0}, False, "MODEL.DECODER.TIE"),
        (RULES["gim"], {}, True, "no unit has stages on two devices"),
    ],
)
def test_what_is_refused(units, options, late, why):
    with pytest.raises(ValueError, match=why):
        run_devices([make(units, split=SPLITS["2"], **options)] * 2, lambda *_: None, late)


def test_a_decoder_that_draws_below_a_cut_is_refused():
    learners = [make(LOCO, split=SPLITS["2"]) for _ in range(2)]
    learners[0].decoders["res3"].append(torch.nn.Dropout(0.5))
    with pytest.raises(ValueError, match="the decoder of res3 draws random numbers"):
        run_devices(learners, lambda share, ports: share.forward_backward(ports, VIEWS if share.is_lowest else None))


def test_a_loss_with_a_state_is_refused():
    """The lowest device alone would have it."""
    learner = make(LOCO, split=SPLITS["2"])
    loss, learner.loss = learner.loss, torch.nn.Module()
    learner.loss.forward = loss
    run_devices([learner] * 2, lambda *_: None)
    learner.loss.register_buffer("centre", torch.zeros(8))
    with pytest.raises(ValueError, match="the loss has parameters or buffers"):
        run_devices([learner] * 2, lambda *_: None)


def test_a_shared_parameter_is_refused():
    learner = make(LOCO, split=SPLITS["2"])
    learner.encoder.stages[2][1][0].weight = learner.encoder.stages[3][1][0].weight  # on one device
    run_devices([learner] * 2, lambda *_: None)
    learner.encoder.stages[1][1][1].weight = learner.encoder.stages[0][1][1].weight
    run_devices([learner] * 2, lambda *_: None)
    learner.encoder.stages[1][0][1].weight = learner.encoder.stages[2][0][1].weight = torch.nn.Parameter(torch.ones(6))
    with pytest.raises(ValueError, match="devices 0 and 1 share a parameter"):
        run_devices([learner] * 2, lambda *_: None)

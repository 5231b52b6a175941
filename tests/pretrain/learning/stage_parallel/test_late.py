"""Updates one batch late, against delayed updates written by hand."""

import pytest
import torch
from devices import run_devices
from test_share import SPLITS, VIEWS
from tiny_learner import LOCO, OPTIONS, RULES, make

STEPS = 4


def sgd(learner):
    return torch.optim.SGD([p for p in learner.parameters() if not p.is_meta], 0.1, momentum=0.9)


def delayed(units, late_names, **options):
    """One process; the gradients of some parameters are used one step later. The state, and the gradients left."""
    learner = make(units, **options)
    optimizer, waiting = sgd(learner), {}
    for number in range(STEPS):
        torch.manual_seed(number)
        learner.forward_backward(VIEWS)
        for name, p in learner.named_parameters():
            if name in late_names:
                p.grad, waiting[name] = waiting.get(name), p.grad
        optimizer.step()
        optimizer.zero_grad()
    return learner.state_dict(), waiting


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("rule", "split"),
    [("loco", "2"), ("loco", "3"), ("loco", "4"), ("loco", "inside a stage"), ("three stages deep", "4"),
     ("deep supervision", "4"), ("sharing of one block", "4"), ("a unit inside another", "2"), ("loco", "every block")],
)  # fmt: skip
def test_late_is_a_delay_of_one_batch(rule, split, options):
    units, kept, late_names, left = RULES[rule], {}, set(), {}
    learners = [make(units, split=SPLITS[split], **OPTIONS[options]) for _ in SPLITS[split]]

    def work(share, ports):
        share.drop_others()
        learner, optimizer = share.learner, sgd(share.learner)
        for number in range(STEPS):
            torch.manual_seed(number)
            share.forward_backward(ports, VIEWS if share.is_lowest else None)
            optimizer.step()
            optimizer.zero_grad()
        share.drain(ports)
        late = {id(p) for p in share.late_parameters()}
        for name, p in learner.named_parameters():
            if id(p) in late:
                late_names.add(name)
                left[name] = p.grad
            else:
                assert p.grad is None
        kept.update({name: value for name, value in learner.state_dict().items() if not value.is_meta})

    run_devices(learners, work, late=True)
    assert late_names
    state, waiting = delayed(units, late_names, **OPTIONS[options])
    for name, value in state.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-10, atol=1e-10, msg=name)
    for name, gradient in waiting.items():
        torch.testing.assert_close(left[name], gradient, rtol=1e-9, atol=1e-10, msg=name)


def test_only_what_losses_above_the_cut_reach_is_late():
    late = {}

    def work(share, ports):
        names = {id(p): name for name, p in share.learner.named_parameters()}
        late[share.device] = {names[id(p)].split(".")[2] for p in share.late_parameters()}

    run_devices([make(LOCO, split=SPLITS["2"]) for _ in range(2)], work, late=True)
    assert late == {0: {"1"}, 1: set()}  # encoder.stages.1 is res3

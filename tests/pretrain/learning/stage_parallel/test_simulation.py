"""The simulated schedule against the real one, and against what is easily reckoned."""

import contextlib
import itertools

import pytest
import torch
from devices import run_devices
from test_share import SPLITS, VIEWS
from tiny_learner import LOCO, RULES, TinyEncoder, make

from pretrain.learning.plan import make_plan
from pretrain.learning.stage_parallel.simulation import balanced, best_split, program, simulate
from pretrain.learning.stage_parallel.times import choose_split, measure, split_at

BLOCKS = range(8)
# A full backward takes twice as long as a forward, as does the loss of its decoder
TIMES = {("forward", b): 1.0 for b in BLOCKS} | {("full backward", b): 2.0 for b in BLOCKS}
TIMES |= {("input gradient", b): 1.0 for b in BLOCKS} | {("loss", f"res{k}"): 3.0 for k in (2, 3, 4, 5)}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("rule", "split"),
    [("loco", "2"), ("loco", "3"), ("gim", "4"), ("loco", "inside a stage"), ("loco", "every block"),
     ("three stages deep", "4"), ("deep supervision", "4")],
)  # fmt: skip
def test_the_program_is_what_a_device_does(rule, split, late):
    if rule == "gim" and late:
        return  # nothing can be late
    done = {}

    def work(share, ports):
        passes = done[share.device] = []

        @contextlib.contextmanager
        def watch(kind, name):
            passes.append((kind, name.replace("gradient of ", "down ").replace("activation", "up")))
            yield

        send_up, send_down = ports.send_activation, ports.send_gradient
        ports.send_activation = lambda *message: (send_up(*message), passes.append(("send", "up")))
        ports.send_gradient = lambda *message: (send_down(*message), passes.append(("send", "down")))
        for _ in range(3):
            passes.clear()  # the third step has all messages
            share.forward_backward(ports, VIEWS if share.is_lowest else None, watch=watch)

    learners = [make(RULES[rule], split=SPLITS[split]) for _ in SPLITS[split]]
    run_devices(learners, work, late)
    for device, passes in done.items():
        expected = program(learners[0].plan, device, late)
        assert expected.pop().kind == "update"
        found = [(step.kind, step.name.split()[0] if step.kind == "send" else step.name) for step in expected]
        assert found == passes, device


def seconds(units, split, late=False, **options):
    return simulate(make_plan(TinyEncoder(), units, split=split), TIMES, late=late, **options)


def test_steps_that_are_easily_reckoned():
    gim = RULES["gim"]
    assert seconds(gim, []) == 4 * (2 * 1 + 3 + 2 * 2)
    assert seconds(gim, SPLITS["2"]) == seconds(gim, []) / 2 and seconds(gim, SPLITS["4"]) == seconds(gim, []) / 4
    assert seconds(gim, SPLITS["4"], message=lambda device: 100.0) == seconds(gim, SPLITS["4"])  # nothing comes down
    # res2 res3: 4 forward, the loss, the input gradient of res3, full backward of res2, then that of res3
    lower = 4 + 3 + 2 + 4 + 4
    upper = 2 + 3 + 2 + 2 + 3 + 4 + 4
    assert seconds(LOCO, []) == lower + upper
    # The gradient is there when it is needed, and the upper device is never without an activation
    assert seconds(LOCO, SPLITS["2"]) == max(lower, upper)
    # A slow link: up, forward, loss, input gradient, down, full backward of res3, forward
    assert seconds(LOCO, SPLITS["2"], message=lambda device: 50.0) == 50 + (2 + 3 + 2) + 50 + 4 + 4
    assert seconds(LOCO, SPLITS["2"], late=True, message=lambda device: 50.0) == (50 + 7 + 50 + 4 + 4) / 2


@pytest.mark.parametrize("rule", ["loco", "three stages deep", "deep supervision"])
@pytest.mark.parametrize("split", SPLITS)
def test_late_is_not_slower(rule, split):
    assert seconds(RULES[rule], SPLITS[split], True) <= seconds(RULES[rule], SPLITS[split]) + 1e-9


def test_the_best_split_is_found():
    weights = [5, 1, 1, 1, 4, 1, 1, 6]

    def longest(starts):
        return max(sum(weights[a:b]) for a, b in itertools.pairwise([0, *starts, 8]))

    for devices in (2, 3, 4):
        best = min(longest(starts) for starts in itertools.combinations(range(1, 8), devices - 1))
        assert longest(best_split(8, devices, longest, [2, 4, 6])) == best
        assert longest(balanced(weights, devices)) == best
    assert best_split(8, 8, longest, [2, 4, 6]) == [1, 2, 3, 4, 5, 6, 7]


def test_times_are_measured_for_each_block():
    encoder = TinyEncoder()
    learner = make(LOCO, split=split_at(range(1, 8), encoder))
    found = measure(learner, torch.randn(4, 3, 16, 16, dtype=torch.float64), rounds=1)
    assert {key for kind, key in found if kind == "forward"} == set(BLOCKS)
    assert {key for kind, key in found if kind == "full backward"} == set(BLOCKS)
    assert {key for kind, key in found if kind == "loss"} == {"res3", "res4", "res5"} and min(found.values()) > 0
    assert all(p.grad is None for p in learner.parameters())
    split, step, one = choose_split(encoder, LOCO, found, 2)
    assert len(split) == 2 and step < one


def test_a_split_at_blocks():
    assert split_at([], TinyEncoder()) == [["res2", "res3", "res4", "res5"]]
    assert split_at([3, 4], TinyEncoder()) == [["res2", "res3[0:1]"], ["res3[1:2]"], ["res4", "res5"]]

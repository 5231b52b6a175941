"""How long a run takes: what is said, when, and what is counted."""

import pytest
from detectron2.engine import TrainerBase

from pretrain.engine import estimate
from pretrain.engine.estimate import TimeEstimate, duration, times_due, warning_of_size
from pretrain.engine.sequential import Turns


class Run(TrainerBase):
    """Iterations that take the given seconds; the clock is made up."""

    def __init__(self, seconds, hook):
        super().__init__()
        self.seconds, self.now = seconds, 0.0
        self.register_hooks([hook])

    def run_step(self):
        self.now += self.seconds(self.iter)


@pytest.fixture
def said(monkeypatch):
    """``said(seconds, iterations, start=0, extras=(), turns=None)``: (iteration, message) pairs.

    ``seconds`` is a function of the iteration."""

    def run(seconds, iterations, start=0, extras=(), turns=None):
        found = []
        trainer = Run(seconds, TimeEstimate("cpu", extras, turns))
        monkeypatch.setattr(estimate.time, "perf_counter", lambda: trainer.now)
        monkeypatch.setattr(estimate.logger, "info", lambda text: found.append((trainer.iter, text)))
        trainer.train(start, iterations)
        return found

    return run


def test_once_after_ten_seconds_without_the_first_iteration(said):
    found = said(lambda i: 60.0 if i == 0 else 2.2, 460)
    assert found == [(5, "about 17 min for 460 iterations at 2.2 s each on cpu")]


def test_each_turn_has_an_estimate(said):
    """Units that learn one after the other; the first goes on after a resume."""
    turns = Turns(["res2", "res3", "res4"], 300)
    found = said(lambda i: 3.0 if i < 100 else 6.0, 300, 90, [("kNN", 5.0)], turns)
    assert found == [
        (94, "about 30 s for 10 iterations of the unit of res2 at 3 s each, without kNN, on cpu"),
        (102, "about 10 min for 100 iterations of the unit of res3 at 6 s each, without kNN, on cpu"),
        (202, "about 10 min for 100 iterations of the unit of res4 at 6 s each, without kNN, on cpu"),
    ]


def test_two_iterations_at_least(said):
    assert said(lambda i: 45.0, 1000) == [(2, "about 12 h 30 min for 1000 iterations at 45 s each on cpu")]


def test_what_comes_between_iterations_is_not_typical(said):
    ((_, text),) = said(lambda i: 8.0 if i == 3 else 0.5, 1000)  # a checkpoint, an evaluation
    assert text == "about 8 min for 1000 iterations at 0.5 s each on cpu"


def test_short_runs_need_no_estimate(said):
    assert said(lambda i: 0.1, 50) == [] and said(lambda i: 100.0, 2) == []


def test_a_resumed_run_counts_what_is_left(said):
    assert said(lambda i: 6.0, 460, 400) == [(402, "about 6 min for the last 60 iterations at 6 s each on cpu")]


def test_evaluation_is_part_of_the_run(said):
    ((_, text),) = said(lambda i: 6.0, 100, extras=[("precise BN", 20.0), ("nothing", 0), ("evaluation", 30.0)])
    assert text == (
        "about 15 min for 100 iterations at 6 s each, with precise BN (about 2 min) and evaluation (about 3 min) on cpu"
    )


@pytest.mark.parametrize(
    ("start", "end", "period", "times"),
    [(0, 10, 0, 1), (0, 10, 5, 2), (0, 10, 4, 3), (0, 10, 20, 1), (4, 10, 4, 2), (5, 10, 5, 1), (9, 10, 5, 1)],
)
def test_how_often_something_is_due(start, end, period, times):
    assert times_due(start, end, period) == times
    done = range(start + 1, end + 1)
    assert times == sum(bool(period and i % period == 0) or i == end for i in done)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0312, "0.031 s"), (0.5, "0.5 s"), (2.24, "2.2 s"), (9.97, "10 s"), (45.4, "45 s"), (99.9, "100 s"),
        (100, "2 min"), (1012, "17 min"), (3599, "60 min"), (7200, "2 h 0 min"), (12000, "3 h 20 min"),
        (172799, "2 days"), (1e6, "12 days"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_recipes_for_gpus():
    text = warning_of_size("cpu", 4096, 224, 224, 6.0, "configs/small.yaml")
    assert text == (
        "this recipe is sized for GPUs: with a ResNet-50, two CPU cores take about 21 min for a step of 4096 images of "
        "224 x 224 pixels. A recipe for a CPU: --config-file configs/small.yaml"
    )
    assert warning_of_size("cuda:0", 4096, 224, 224, 6.0, "configs/small.yaml") is None
    assert warning_of_size("cpu", 64, 64, 64, 6.0, "configs/small.yaml") is None

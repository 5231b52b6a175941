"""Steps run when those that they need are done, several at a time, and what fails stops no other."""

import threading
from pathlib import Path

import pytest

from loco_det.ranking.scheduler import StepFailedError, run_all
from loco_det.ranking.steps import Step


def step(folder, name, *needs):
    return Step(name, "row", "tool.py", folder / name, list, list(needs))


@pytest.fixture
def steps(tmp_path):
    """a, then b and c, then d; e by itself."""
    a = step(tmp_path, "a")
    b, c = step(tmp_path, "b", a), step(tmp_path, "c", a)
    return [a, b, c, step(tmp_path, "d", b, c), step(tmp_path, "e")]


def finish(step, number, job):
    Path(step.done).touch()


def test_order_and_what_is_done(steps):
    steps[0].done.touch()
    order = []

    def run(step, number, job):
        order.append((step.title, number))
        finish(step, number, job)

    assert run_all(steps, run, 1, print) == []
    assert order == [("b", 2), ("c", 3), ("d", 4), ("e", 5)]
    assert run_all(steps, run, 1, print) == [] and len(order) == 4


def test_what_needs_a_failed_step_is_left_out(steps):
    said = {}

    def run(step, number, job):
        if step.title == "b":
            raise StepFailedError("error of b")
        finish(step, number, job)

    left = run_all(steps, run, 1, lambda step, line: said.update({step.title: line}))
    assert [step.title for step in left] == ["b", "d"] and said == {"b": "error of b"}
    assert steps[2].is_done and steps[4].is_done


def test_jobs_run_side_by_side(steps):
    """b, c and e meet: with two jobs at most two are there at a time, each with a number of its own."""
    now, most, lock, met = set(), [], threading.Lock(), threading.Barrier(2, timeout=30)

    def run(step, number, job):
        with lock:
            assert job not in now
            now.add(job)
            most.append(len(now))
        if step.title in ("b", "c"):
            met.wait()
        with lock:
            now.remove(job)
        finish(step, number, job)

    steps[4].done.touch()
    assert run_all(steps, run, 2, print) == [] and max(most) == 2


def test_a_defect_is_raised(steps):
    def run(step, number, job):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run_all(steps, run, 2, print)

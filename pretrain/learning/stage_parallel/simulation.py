"""How long a step of several devices takes, from the times of its passes: a simulation of the schedule of share.py."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..local import walk_down
from ..plan import Plan
from ..segments import Segment
from ..tape import Tape

Times = Mapping[tuple[str, int | str], float]  # kind of a pass, index of a block or name of a unit -> seconds
MessageTime = Callable[[int], float]  # index of the lower of two devices -> seconds that a message between them takes


class Pass(NamedTuple):
    """A part of a device's step.

    Attributes:
        kind: "forward", "loss", "input gradient", "full backward", "update"; "send" or "wait" for a message.
        name: of the segment or unit; of a message "up", or "down" and the name of the unit.
        blocks: that it computes.
        lag: of a message: how many batches ago its batch was begun.
    """

    kind: str
    name: str
    blocks: range = range(0)
    lag: int = 0


class _Symbol:
    """Stands in for an entry of the tape: it takes gradients, and computes nothing."""

    gradient = accumulated = output = None

    def __init__(self, segment: Segment) -> None:
        self.segment = segment

    def accumulate_gradient(self) -> None: ...

    def start_from_accumulated(self) -> None: ...

    def input_gradient(self, keep_graph: bool) -> object:
        return self

    def full_backward(self, to_input: bool) -> object:
        return self


def program(plan: Plan, device: int, late: bool = False) -> list[Pass]:
    """What a device does in a step, in order, as :class:`.share.Share` does it.

    Args:
        plan: with ``split``.
        device: index of the device.
        late: see :class:`.share.Share`.
    """
    segments, passes = plan.devices[device], []
    blocks = {segment.name: segment.blocks for segment in segments}
    own, lag = {segment.index for segment in segments}, 0
    unit = ""

    @contextlib.contextmanager
    def watch(kind: str, name: str) -> Iterator[None]:
        passes.append(Pass(kind, name, blocks[name]))
        yield

    def walk(name: str) -> None:
        nonlocal unit
        unit = name
        sections = plan.sections[name]
        here = [section for section in sections if section.segments[0].index in own]
        walk_down(name, here, tape, continues=sections[-1].segments[-1].index < min(own))

    tape: Any = Tape(lambda gradient: passes.append(Pass("send", f"down {unit}", lag=lag)), watch)
    if device:
        passes.append(Pass("wait", "up"))
    for segment in segments:
        tape[segment.index] = _Symbol(segment)
        passes.append(Pass("forward", segment.name, segment.blocks))
        if segment is segments[-1] and device + 1 < len(plan.devices):
            passes.append(Pass("send", "up"))
        if segment.top_of is not None:
            passes.append(Pass("loss", segment.top_of))
            walk(segment.top_of)
    top = segments[-1]
    for name in [] if device + 1 == len(plan.devices) else [name for name in top.losses if name != top.top_of]:
        lag = int(late)
        passes.append(Pass("wait", f"down {name}", lag=lag))
        walk(name)
    return [*passes, Pass("update", "", range(segments[0].blocks.start, top.blocks.stop))]


def seconds_of(step: Pass, times: Times) -> float:
    """Duration of a pass: that of its blocks, or of the loss."""
    if step.kind == "loss":
        return times["loss", step.name]
    return sum(times.get((step.kind, block), 0.0) for block in step.blocks)


def simulate(
    plan: Plan,
    times: Times,
    message: MessageTime = lambda device: 0.0,
    late: bool = False,
    steps: int = 24,
) -> float:
    """Seconds of a step once the devices are in step with each other.

    Args:
        plan: with ``split``.
        times: of the passes, as :func:`.times.measure` returns them.
        message: duration of an activation or a gradient between two devices.
        late: see :class:`.share.Share`.
        steps: number of simulated steps.
    """
    programs = [program(plan, device, late) for device in range(len(plan.devices))]
    arrivals: dict[tuple[int, str, int], float] = {}  # of messages: lower device, name, batch
    ends = [_run(device, programs[device], times, message, arrivals, steps) for device in range(len(programs))]
    clocks: list[list[float]] = [[] for _ in programs]
    running = set(range(len(programs)))
    while running:  # a device runs until it waits for a message that is not sent yet
        for device in sorted(running):
            for end in ends[device]:
                if end is None:
                    break
                clocks[device].append(end)
            else:
                running.discard(device)
    half = steps // 2
    return max((clock[-1] - clock[half - 1]) / (steps - half) for clock in clocks)


def _run(
    device: int,
    steps: Sequence[Pass],
    times: Times,
    message: MessageTime,
    arrivals: dict[tuple[int, str, int], float],
    count: int,
) -> Iterator[float | None]:
    """Run one device; yields the time at the end of each step, and None while a message is missing."""
    now = 0.0
    for batch in range(count):
        for step in steps:
            lower = device - ((step.name == "up") == (step.kind == "wait"))
            key = (lower, step.name, batch - step.lag)
            if step.kind == "wait" and batch >= step.lag:
                while key not in arrivals:
                    yield None
                now = max(now, arrivals[key])
            elif step.kind == "send":
                arrivals[key] = now + message(lower)
            elif step.kind != "wait":
                now += seconds_of(step, times)
        yield now


def best_split(
    blocks: int,
    devices: int,
    seconds: Callable[[list[int]], float],
    boundaries: Sequence[int],
    weights: Sequence[float] | None = None,
) -> list[int]:
    """Where devices begin, so that a step takes the least time, found by moving one
    beginning at a time.

    Args:
        blocks: number of blocks.
        devices: number of devices.
        seconds: duration of a step, from the first blocks of all devices but the lowest.
        boundaries: first blocks of stages, without 0: the search begins with the best choice among them, or with
            :func:`balanced` weights, if that is better.
        weights: of the blocks; None: all the same.

    Returns:
        The first blocks of all devices but the lowest, in rising order.
    """
    of = functools.cache(lambda choice: seconds(list(choice)))
    even = tuple(balanced(weights or [1.0] * blocks, devices))
    best: tuple[int, ...] = min([*itertools.combinations(boundaries, devices - 1), even], key=of)
    while True:
        moved = [
            (*best[:i], block, *best[i + 1 :])
            for i in range(len(best))
            for block in range((0, *best)[i] + 1, (*best[1:], blocks)[i])
        ]
        better = min(moved, key=of, default=best)
        if of(better) >= of(best):
            return list(best)
        best = better


def balanced(weights: Sequence[float], devices: int) -> list[int]:
    """Where devices begin, so that the largest sum of weights on one device is the least.

    Args:
        weights: of the blocks, at least as many as devices.
        devices: number of devices.

    Returns:
        The first blocks of all devices but the lowest, in rising order.
    """
    sums = [0.0, *itertools.accumulate(weights)]

    @functools.cache
    def best(stop: int, count: int) -> tuple[float, tuple[int, ...]]:
        if count == 1:
            return sums[stop], ()
        choices = ((start, best(start, count - 1)) for start in range(count - 1, stop))
        return min((max(most, sums[stop] - sums[start]), (*before, start)) for start, (most, before) in choices)

    return list(best(len(weights), devices)[1])

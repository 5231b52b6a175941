"""Times of the passes of each block, from which a split is chosen, and a step of many devices predicted."""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...encoders import Encoder
from ..learner import LocalLearner
from ..plan import make_plan
from ..units import name_of, read_units
from .simulation import Times, best_split, simulate

KINDS = ("forward", "input gradient", "full backward", "update")


def split_at(starts: Sequence[int], encoder: Encoder) -> list[list[str]]:
    """MODEL.STAGE_PARALLEL.SPLIT of devices that begin at some blocks.

    Args:
        starts: the first blocks of all devices but the lowest, in rising order.
        encoder: whose blocks they are.
    """
    sizes = [len(stage) for stage in encoder.stages]
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    points = sorted({0, *ends, *starts})
    split: list[list[str]] = [[]]
    for start, stop in zip(points, points[1:], strict=False):
        if start in starts:
            split.append([])
        split[-1].append(name_of(range(start, stop), encoder))
    return split


def measure(learner: LocalLearner, views: Tensor, rounds: int = 3) -> dict[tuple[str, int | str], float]:
    """Seconds of the passes of each block, and of each unit's loss with its decoder: medians over some steps.

    Args:
        learner: built with a ``split`` that gives each block a device. All of them run here.
        views: (2B, 3, H, W), the network's input.
        rounds: measured steps, after one that is not.
    """
    blocks = {segment.name: segment.blocks.start for segment in learner.segments}
    found: dict[tuple[str, int | str], list[float]] = {}

    @contextlib.contextmanager
    def watch(kind: str, name: str) -> Iterator[None]:
        _synchronise(views.device)
        begun = time.perf_counter()
        yield
        _synchronise(views.device)
        found.setdefault((kind, blocks[name] if kind != "loss" else name), []).append(time.perf_counter() - begun)

    for number in range(rounds + 1):
        if number == 1:
            found.clear()
        learner.forward_backward(views, watch=watch)
        learner.zero_grad()
    return {key: statistics.median(values) for key, values in found.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_split(
    encoder: Encoder,
    units: Sequence[Sequence[str]],
    times: Times,
    devices: int,
    late: bool = False,
    shared_gradient: str = "all",
) -> tuple[list[list[str]], float, float]:
    """The split of an encoder among devices with the shortest step, without the time of messages.

    Args:
        encoder: whose stages are split.
        units: names of consecutive stages or slices of stages, for each unit.
        times: from :func:`measure`.
        devices: number of devices.
        late: see :class:`.share.Share`.
        shared_gradient: see :func:`make_plan`.

    Returns:
        tuple: the split, and the seconds of a step on these devices and on one.
    """

    def seconds(starts: Sequence[int]) -> float:
        plan = make_plan(encoder, units, (), shared_gradient, split_at(starts, encoder))
        return simulate(plan, times, late=late and bool(starts))

    sizes = [len(stage) for stage in encoder.stages]
    boundaries = [sum(sizes[:k]) for k in range(1, len(sizes))]
    weights = [sum(times.get((kind, block), 0.0) for kind in KINDS) for block in range(sum(sizes))]
    for unit in read_units(units, encoder):
        weights[unit.blocks[-1]] += times.get(("loss", unit.name), 0.0)
    starts = best_split(sum(sizes), devices, seconds, boundaries, weights)
    return split_at(starts, encoder), seconds(starts), seconds([])

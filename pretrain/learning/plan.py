"""Which losses reach and train which segments of an encoder.

A loss reaches the segments of its unit: its gradient arrives at their outputs. It trains those whose parameters get
this gradient. Where a section learns from the upper gradient only, the other losses reach it but do not train it.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..encoders import Encoder
from .segments import Segment, cut
from .units import read_split, read_units


@dataclass(eq=False)
class Section:
    """Consecutive segments that the same losses reach.

    LoCo's units [res2 res3] [res3 res4] [res4 res5] make four sections of one segment each. The end-to-end unit
    [res2 res3 res4 res5] makes one section of four segments.

    Attributes:
        segments: from the top down.
        losses: names of the units that contain it, lowest first.
        trained_by: those of ``losses`` that train it. The gradients of the others only pass through it.
    """

    segments: list[Segment]
    losses: tuple[str, ...]
    trained_by: tuple[str, ...]


@dataclass(eq=False)
class Plan:
    """An encoder cut into segments, and its units.

    Attributes:
        segments: from the image upwards.
        sections: name of each unit -> its sections from the top down. A section is on one device.
        devices: the segments of each device, from the image upwards; one device has all of them.
    """

    segments: list[Segment]
    sections: dict[str, list[Section]]
    devices: list[list[Segment]]


def make_plan(
    encoder: Encoder,
    units: Iterable[Sequence[str]],
    recompute: Iterable[str] = (),
    shared_gradient: str = "all",
    split: Sequence[Sequence[str]] = (),
) -> Plan:
    """Plan which losses reach and train which segments.

    Args:
        encoder: whose stages learn.
        units: names of consecutive stages or slices of stages, for each unit.
        recompute: stages or slices of stages, each block of which becomes a segment that is recomputed.
        shared_gradient: a section of several units is trained by "all" their losses, or by the "upper"most one only.
        split: names of consecutive stages or slices of stages, for each device; empty: one device.

    Raises:
        ValueError: if a unit or the split is not possible (see :func:`read_units` and :func:`read_split`), or a stage
            or an option is not known.
    """
    if shared_gradient not in ("all", "upper"):
        raise ValueError(f"shared_gradient is {shared_gradient!r}: choose all or upper")
    parsed = read_units(units, encoder)
    runs = read_split(split, encoder)
    segments = cut(encoder, parsed, recompute, (run.start for run in runs))
    devices = [[segment for segment in segments if segment.blocks.start in run] for run in runs]
    sections = {
        unit.name: [
            section for device in reversed(devices) for section in sections_of(unit.name, device, shared_gradient)
        ]
        for unit in parsed
    }
    return Plan(segments, sections, devices)


def plan_of_one(plan: Plan, unit: str) -> Plan:
    """What runs while one unit learns alone: the stages below it, frozen and without a graph, and its own.

    Args:
        plan: of all units, which :func:`refuse_turns` has not refused.
        unit: name of the unit.

    Returns:
        The plan, with segments of the same modules.

    Raises:
        ValueError: if the unit is not known.
    """
    if unit not in plan.sections:
        raise ValueError(f"no unit ends at {unit}: {', '.join(plan.sections) or 'there is none'}")
    own = [segment for segment in plan.segments if segment.losses == (unit,)]
    below = [
        replace(segment, losses=(), top_of=None, recompute=False, keeps_graph=False, frozen=True)
        for segment in plan.segments[: own[0].index]
    ]
    return Plan([*below, *own], {unit: plan.sections[unit]}, [[*below, *own]])


def refuse_turns(plan: Plan) -> None:
    """Refuse units that cannot learn one after the other, because not every stage is in one of them.

    Raises:
        ValueError: naming the first such stage or slice of a stage.
    """
    for segment in plan.segments:
        if len(segment.losses) > 1:
            raise ValueError(
                f"{segment.name} is in the units of {' and '.join(segment.losses)}, whose gradients it needs at once: "
                "only units that do not overlap learn one after the other (SOLVER.SEQUENTIAL)"
            )
        if not segment.losses:
            raise ValueError(
                f"no unit contains {segment.name}, which would never run in training mode: units that learn one after "
                "the other have all stages (SOLVER.SEQUENTIAL)"
            )


def sections_of(unit: str, segments: list[Segment], shared_gradient: str = "all") -> list[Section]:
    """The sections of a unit on a device, from the top down.

    Args:
        unit: its name.
        segments: of the encoder, or of one device, from the image upwards.
        shared_gradient: see :func:`make_plan`.
    """
    inside = [segment for segment in reversed(segments) if unit in segment.losses]
    return [
        Section(list(run), losses, trained_by=losses if shared_gradient == "all" else losses[-1:])
        for losses, run in itertools.groupby(inside, key=lambda segment: segment.losses)
    ]

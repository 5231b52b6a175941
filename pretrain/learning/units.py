"""Read the config's stages, "res3", and slices of stages, "res3[:1]", of units and of devices: ranges of blocks."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..encoders import Encoder

PART = re.compile(r"(?P<stage>\w+)(?:\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?")  # "res3" or "res3[:1]"


class Unit(NamedTuple):
    """Consecutive blocks that learn from one loss, which stands on the last of them.

    Attributes:
        name: the last part of the unit, such as "res3" or "res3[:1]"; the name of its decoder and its loss.
        blocks: indices of its blocks, counted from the image through all stages of the encoder.
    """

    name: str
    blocks: range


def read_units(units: Iterable[Sequence[str]], encoder: Encoder) -> list[Unit]:
    """Read all units of an encoder.

    Args:
        units: names of consecutive stages or slices of stages, for each unit.
        encoder: whose stages they are.

    Returns:
        The units in the order of their last blocks: the order in which a forward pass reaches their losses.

    Raises:
        ValueError: if a stage is not known, a unit is not a run of consecutive stages, or two units end at one block.
    """
    found: dict[int, Unit] = {}  # index of the last block -> unit
    for parts in units:
        unit = read_unit(parts, encoder)
        if unit.blocks[-1] in found:
            raise ValueError(f"two units end at {unit.name}: a stage can be the top of one unit only")
        found[unit.blocks[-1]] = unit
    return [found[top] for top in sorted(found)]


def read_unit(parts: Sequence[str], encoder: Encoder, what: str = "unit") -> Unit:
    """Read one unit, such as ["res2", "res3[:1]"].

    Args:
        parts: names of stages or slices of stages.
        encoder: whose stages they are.
        what: has these parts, for the error.

    Raises:
        ValueError: if a stage is not known, or the unit is not a run of consecutive stages.
    """
    blocks = [block for part in parts for block in blocks_of(part, encoder)]
    if not blocks or blocks != list(range(blocks[0], blocks[-1] + 1)):
        raise ValueError(f"{what} {parts} is not a run of consecutive stages of {list(encoder.stage_names)}")
    return Unit(parts[-1], range(blocks[0], blocks[-1] + 1))


def read_split(split: Sequence[Sequence[str]], encoder: Encoder) -> list[range]:
    """Read which device has which blocks of an encoder.

    Args:
        split: names of consecutive stages or slices of stages, for each device, such as [["res2", "res3"], ["res4",
            "res5"]]; empty: one device has all.
        encoder: whose stages they are.

    Returns:
        Indices of the blocks of each device, counted from the image through all stages.

    Raises:
        ValueError: if a stage is not known, a device has no run of consecutive blocks, or the devices together do not
            have each block once, in the order of the stages.
    """
    count = sum(len(stage) for stage in encoder.stages)
    runs = [read_unit(parts, encoder, "device").blocks for parts in split] or [range(count)]
    for parts, run, stop in zip(split, runs, [0, *(run.stop for run in runs)], strict=False):
        if run.start != stop:
            what = "leaves out" if run.start > stop else "has again"
            block = min(stop, run.start)
            name = name_of(range(block, block + 1), encoder)
            raise ValueError(f"{list(parts)} {what} {name}: each block belongs to one device, in the stages' order")
    if runs[-1].stop != count:
        missing = name_of(range(runs[-1].stop, runs[-1].stop + 1), encoder)
        raise ValueError(f"no device has {missing}: each block belongs to one device")
    return runs


def name_of(blocks: range, encoder: Encoder) -> str:
    """Name of some blocks of one stage: the stage, or a slice of it, such as "res3[1:2]"."""
    first = 0
    for name, stage in zip(encoder.stage_names, encoder.stages, strict=True):
        stop = first + len(stage)
        if blocks.start < stop:
            whole = blocks == range(first, stop)
            return name if whole else f"{name}[{blocks.start - first}:{blocks.stop - first}]"
        first = stop
    raise IndexError(f"block {blocks.start} of {first}")


def blocks_of(part: str, encoder: Encoder) -> range:
    """Indices of the blocks of a stage or a slice of a stage, counted from the image through all stages.

    Args:
        part: "res3" or a slice with Python's meaning, such as "res3[:2]" or "res3[-1:]".
        encoder: whose stage it is.

    Raises:
        ValueError: if the stage is not known, or the slice is empty.
    """
    match, names = PART.fullmatch(str(part)), list(encoder.stage_names)
    if not match or match["stage"] not in names:
        raise ValueError(f"{part!r} is not a stage, or a slice of one such as {names[-1]}[:1], of {names}")
    sizes = [len(stage) for stage in encoder.stages]
    stage = names.index(match["stage"])
    first = sum(sizes[:stage])
    start, stop = (int(match[end]) if match[end] else None for end in ("start", "stop"))
    blocks = range(first, first + sizes[stage])[start:stop]
    if not blocks:
        raise ValueError(f"{part!r} is empty: {match['stage']} has {sizes[stage]} blocks")
    return blocks

"""From units of stages to segments: the runs of blocks that the gradient schedule treats as a whole."""

import itertools
import re

from torch import nn


class Segment:
    """A run of blocks that no unit's boundary cuts and that is kept for backward, or recomputed, as a whole.

    Attributes:
        module: the blocks as a Sequential.
        index: position among the segments, from the image upwards.
        tops: indices of the top segments of the units that this one is in: whose losses reach it.
        bottom_of: index of every unit's top segment -> index of its bottom segment.
        recompute: whether it runs forward again when its gradient is due.
        keep: whether its graph is made on the way forward.
        ends_stage: whether it is the last of its stage.
        needs_input_gradient: whether a unit goes further down.
    """

    def __init__(self, module, index, bottom_of, recompute, ends_stage):
        self.module, self.index, self.bottom_of = module, index, bottom_of
        self.recompute, self.ends_stage = recompute, ends_stage
        self.tops = [top for top, low in bottom_of.items() if low <= index <= top]
        self.needs_input_gradient = any(bottom_of[top] < index for top in self.tops)
        self.keep = bool(self.tops) and not recompute


def plan(encoder, units, recompute=()):
    """Cut an encoder into segments.

    Args:
        encoder: module with ``stage_names`` and ``stages``, a Sequential of blocks for each.
        units: list of units, each a list of consecutive stages or slices of stages, "res3[:1]".
        recompute: stages or slices of stages, each block of which becomes a segment that is recomputed.

    Returns:
        tuple: the segments; dict from the index of each unit's top segment to its name, the unit's last part; dict
        from the same to the unit's segments from the top down, in runs that the same losses reach.

    Raises:
        ValueError: if a unit is not a run of consecutive stages, two units have the same top, or a stage is not known.
    """
    spans, names = {}, {}  # the end of each unit, counted in blocks -> its beginning; -> its name
    for unit in units:
        span = [i for part in unit for i in blocks_of(part, encoder)]
        if not span or span != list(range(span[0], span[-1] + 1)):
            raise ValueError(f"unit {unit} is not a run of consecutive stages of {list(encoder.stage_names)}")
        if span[-1] + 1 in spans:
            raise ValueError(f"two units end at {unit[-1]}: a stage can be the top of one unit only")
        spans[span[-1] + 1], names[span[-1] + 1] = span[0], unit[-1]
    again = {i for part in recompute for i in blocks_of(part, encoder)}
    ends = list(itertools.accumulate((len(stage) for stage in encoder.stages), initial=0))
    cuts = sorted({*ends, *spans, *spans.values(), *again, *(i + 1 for i in again)})
    index = {cut: k for k, cut in enumerate(cuts)}
    bottom_of = {index[end] - 1: index[start] for end, start in spans.items()}
    blocks = [block for stage in encoder.stages for block in stage]
    segments = [
        Segment(nn.Sequential(*blocks[a:b]), k, bottom_of, a in again, b in ends)
        for k, (a, b) in enumerate(itertools.pairwise(cuts))
    ]
    for segment in segments:  # a unit that ends in the same stage needs the graph as soon as it is made
        stage_end = next(other.index for other in segments[segment.index :] if other.ends_stage)
        segment.keep |= any(top <= stage_end for top in segment.tops)
    runs = {
        top: [list(run) for _, run in itertools.groupby(reversed(segments[low : top + 1]), key=lambda s: s.tops)]
        for top, low in bottom_of.items()
    }
    return segments, {index[end] - 1: name for end, name in names.items()}, runs


def blocks_of(part, encoder):
    """Indices of the blocks, counted through all stages, of a stage "res3" or of a slice of it such as "res3[:2]"."""
    match = re.fullmatch(r"(\w+)(?:\[(-?\d*):(-?\d*)\])?", str(part))
    names = list(encoder.stage_names)
    if not match or match[1] not in names:
        raise ValueError(f"{part!r} is not a stage, or a slice of one such as {names[-1]}[:1], of {names}")
    sizes = [len(stage) for stage in encoder.stages]
    k = names.index(match[1])
    start = sum(sizes[:k])
    found = range(start, start + sizes[k])[slice(*(int(m) if m else None for m in match.groups()[1:]))]
    if not found:
        raise ValueError(f"{part!r} is empty: {match[1]} has {sizes[k]} blocks")
    return found

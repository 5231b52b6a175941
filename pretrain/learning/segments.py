"""Cut an encoder into segments: the runs of blocks that run forward and backward as a whole."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from ..encoders import Encoder
from .noise import add_noise
from .units import Unit, blocks_of


@dataclass(eq=False)
class Segment:
    """A run of blocks that runs forward and backward as a whole.

    Attributes:
        index: position among the segments, counted from the image upwards.
        module: the blocks; a Sequential of the encoder's own modules.
        losses: names of the units that contain it, in the order of their losses. Only these losses reach it.
        unit: name of the unit whose top it is, on whose output the decoder and the loss stand; None: of no unit.
        ends_stage: whether it is the last segment of its stage.
        recompute: whether it runs forward again when its gradient is due.
        keeps_graph: whether its first forward pass makes a graph.
        needs_input_gradient: whether a unit that contains it goes further down.
    """

    index: int
    module: nn.Sequential
    losses: tuple[str, ...]
    unit: str | None
    ends_stage: bool
    recompute: bool
    keeps_graph: bool
    needs_input_gradient: bool

    def forward(self, x: Tensor, noise: float = 0.0) -> Tensor:
        """Run the blocks.

        Args:
            x: (B, C, H, W), the output of the segment below or the images.
            noise: see :func:`add_noise`; a stage's output gets it, so that only the last segment of a stage adds it.

        Returns:
            (B, C', H', W').
        """
        h = self.module(x)
        return add_noise(h, noise) if noise and self.ends_stage else h


def cut(encoder: Encoder, units: list[Unit], recompute: Iterable[str] = ()) -> list[Segment]:
    """Cut an encoder where a unit begins or ends, at the ends of stages, and around each block that is recomputed.

    Args:
        encoder: whose stages are cut.
        units: in the order of their last blocks.
        recompute: stages or slices of stages, each block of which becomes a segment that is recomputed.

    Returns:
        The segments from the image upwards.

    Raises:
        ValueError: if a stage of ``recompute`` is not known.
    """
    recomputed = {block for part in recompute for block in blocks_of(part, encoder)}
    stage_ends = list(itertools.accumulate(len(stage) for stage in encoder.stages))
    blocks = [block for stage in encoder.stages for block in stage]
    segments: list[Segment] = []
    for start, stop in itertools.pairwise(_bounds(units, recomputed, stage_ends)):
        around = [unit for unit in units if start in unit.blocks]
        stage_end = next(end for end in stage_ends if end >= stop)
        loss_in_stage = any(unit.blocks.stop <= stage_end for unit in around)  # such a loss needs the graph soon
        segment = Segment(
            index=len(segments),
            module=nn.Sequential(*blocks[start:stop]),
            losses=tuple(unit.name for unit in around),
            unit=next((unit.name for unit in around if unit.blocks.stop == stop), None),
            ends_stage=stop == stage_end,
            recompute=start in recomputed,
            keeps_graph=loss_in_stage or (bool(around) and start not in recomputed),
            needs_input_gradient=any(unit.blocks.start < start for unit in around),
        )
        segments.append(segment)
    return segments


def _bounds(units: list[Unit], recomputed: set[int], stage_ends: list[int]) -> list[int]:
    """The blocks at which a segment starts; at the end the number of all blocks."""
    bounds = {0, *stage_ends}
    bounds |= {bound for unit in units for bound in (unit.blocks.start, unit.blocks.stop)}
    bounds |= {bound for block in recomputed for bound in (block, block + 1)}
    return sorted(bounds)

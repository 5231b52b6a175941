"""Cut an encoder into segments: runs of blocks with a graph of their own, usually a stage each."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..encoders import Encoder
from .noise import add_noise
from .units import Unit, blocks_of, name_of

Weights = dict[str, Tensor]  # name of a parameter of a module -> a tensor of its shape


@dataclass(eq=False)
class Segment:
    """A run of blocks that runs forward and backward as a whole.

    Attributes:
        index: position among the segments, counted from the image upwards.
        name: its stage, such as "res3", or a slice of the stage, such as "res3[:1]".
        blocks: indices of its blocks, counted from the image through all stages of the encoder.
        module: the blocks; a Sequential of the encoder's own modules.
        losses: names of the units that contain it, lowest first. Only these losses reach it.
        top_of: name of the unit that ends here: its decoder and its loss stand on this output. None if no unit ends
            here.
        ends_stage: whether it is the last segment of its stage.
        recompute: whether it runs forward again for a backward pass that finds no graph.
        keeps_graph: whether the first forward builds a graph. A segment that no loss reaches builds none. A recomputed
            segment builds one only if the loss of one of its units stands in the same stage.
        needs_input_gradient: whether a unit that contains it continues below.
        frozen: whether it runs in evaluation mode, so that BN normalises by its running averages and keeps them.
    """

    index: int
    name: str
    blocks: range
    module: nn.Sequential
    losses: tuple[str, ...]
    top_of: str | None
    ends_stage: bool
    recompute: bool
    keeps_graph: bool
    needs_input_gradient: bool
    frozen: bool = False

    def forward(self, x: Tensor, noise: float = 0.0, weights: Weights | None = None) -> Tensor:
        """Run the blocks.

        Args:
            x: (2B, C, H, W), the output of the segment below or the images.
            noise: see :func:`add_noise`. Only the last segment of a stage adds it.
            weights: stand in for the parameters; None: the parameters.

        Returns:
            (2B, C', H', W').
        """
        with evaluation_mode(self.module) if self.frozen else contextlib.nullcontext():
            h = self.module(x) if weights is None else torch.func.functional_call(self.module, weights, (x,))
        return add_noise(h, noise) if noise and self.ends_stage else h


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode; afterwards each of its modules is in the mode that it had."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def cut(
    encoder: Encoder, units: list[Unit], recompute: Iterable[str] = (), starts: Iterable[int] = ()
) -> list[Segment]:
    """Cut an encoder where units begin and end, where stages end, before and after each recomputed block, and where
    devices begin.

    Args:
        encoder: whose stages are cut.
        units: in the order of their last blocks, lowest first.
        recompute: stages or slices of stages, each block of which becomes a segment that is recomputed.
        starts: indices of further blocks at which a segment begins.

    Returns:
        The segments from the image upwards.

    Raises:
        ValueError: if a stage of ``recompute`` is not known.
    """
    recomputed = {block for part in recompute for block in blocks_of(part, encoder)}
    stage_ends = list(itertools.accumulate(len(stage) for stage in encoder.stages))
    blocks = [block for stage in encoder.stages for block in stage]
    segments: list[Segment] = []
    for start, stop in itertools.pairwise(sorted({*starts, *_cut_points(units, recomputed, stage_ends)})):
        containing = [unit for unit in units if start in unit.blocks]
        stage_end = next(end for end in stage_ends if end >= stop)
        # The backward of such a loss comes before the next stage: a first forward without a graph would save little.
        loss_in_stage = any(unit.blocks.stop <= stage_end for unit in containing)
        segment = Segment(
            index=len(segments),
            name=name_of(range(start, stop), encoder),
            blocks=range(start, stop),
            module=nn.Sequential(*blocks[start:stop]),
            losses=tuple(unit.name for unit in containing),
            top_of=next((unit.name for unit in containing if unit.blocks.stop == stop), None),
            ends_stage=stop == stage_end,
            recompute=start in recomputed,
            keeps_graph=loss_in_stage or (bool(containing) and start not in recomputed),
            needs_input_gradient=any(unit.blocks.start < start for unit in containing),
        )
        segments.append(segment)
    return segments


def _cut_points(units: list[Unit], recomputed: set[int], stage_ends: list[int]) -> set[int]:
    """Index of the first block of each segment, and the number of all blocks."""
    points = {0, *stage_ends}
    points |= {point for unit in units for point in (unit.blocks.start, unit.blocks.stop)}
    points |= {point for block in recomputed for point in (block, block + 1)}
    return points

"""The passes of one segment during one step: forward, input gradient only, full backward."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .replay import Replay
from .segments import Segment


@dataclass(eq=False)
class TapeEntry:
    """What one segment's forward pass leaves for its backward passes.

    Nothing but this entry holds a gradient or a graph, so that each is freed during the pass that is its last use.

    Attributes:
        segment: the segment.
        noise: of the forward pass, see :func:`add_noise`.
        input: (B, C, H, W), a detached copy of the output below.
        output: (B, C', H', W') with its graph; None while the graph is not kept.
        replay: what a second forward pass needs to equal the first; None for a segment that is not recomputed.
        gradient: d loss / d output of one loss, (B, C', H', W'), which the next backward pass uses up.
        accumulated: sum of d loss / d output over the losses so far, (B, C', H', W'). Only the top segment of a section
            has it, until its full backward pass.
    """

    segment: Segment
    noise: float
    input: Tensor
    output: Tensor | None = None
    replay: Replay | None = None
    gradient: Tensor | None = None
    accumulated: Tensor | None = None

    def accumulate_gradient(self) -> None:
        """Add ``gradient`` to ``accumulated``."""
        if self.accumulated is None:
            self.accumulated = self.gradient
        elif self.gradient is not None:
            self.accumulated = self.accumulated + self.gradient

    def input_gradient(self, keep_graph: bool) -> Tensor:
        """Use up ``gradient``, for the gradient with respect to the input only: none of a parameter is computed.

        Args:
            keep_graph: whether the graph stays for another backward pass.

        Returns:
            d loss / d input, (B, C, H, W).
        """
        output = self._output_with_graph()
        self.output = output if keep_graph else None
        return torch.autograd.grad(_UseUp.apply(output, self), self.input, retain_graph=keep_graph)[0]

    def full_backward(self, to_input: bool) -> Tensor | None:
        """Use up ``gradient``: accumulate the gradients of the parameters into their ``.grad``, and free the graph.

        Args:
            to_input: whether the gradient with respect to the input is wanted too.

        Returns:
            d loss / d input, (B, C, H, W), if it is wanted.
        """
        wanted: list[Tensor] = [p for p in self.segment.module.parameters() if p.requires_grad]
        if to_input:
            wanted.append(self.input)
        if wanted:
            start = _UseUp.apply(self._output_with_graph(), self)
            self.output = None
            torch.autograd.backward(start, inputs=wanted)
        return self.input.grad if to_input else None

    def _output_with_graph(self) -> Tensor:
        """The output; the segment runs forward again if its graph was not kept."""
        if self.output is not None:
            return self.output
        assert self.replay is not None  # only a segment that is recomputed does not keep its graph
        with self.replay.restored(self.segment.module):
            return self.segment.forward(self.input, self.noise)


def forward(segment: Segment, h: Tensor, noise: float) -> tuple[Tensor, TapeEntry]:
    """Run a segment forward on a detached copy of ``h``, so that no backward pass goes further down.

    Args:
        segment: the segment.
        h: (B, C, H, W), the output of the segment below or the images.
        noise: see :func:`add_noise`.

    Returns:
        The output (B, C', H', W') without its graph, and the entry for the backward passes.
    """
    x = h.detach().requires_grad_(segment.needs_input_gradient)
    entry = TapeEntry(segment, noise, x, replay=Replay.now(x.device) if segment.recompute else None)
    with torch.set_grad_enabled(segment.keeps_graph):
        output = segment.forward(x, noise)
    if segment.keeps_graph:
        entry.output = output
    return output.detach(), entry


class _UseUp(torch.autograd.Function):
    """Where a backward pass begins: at an entry's gradient, which is then held by autograd only, and freed at once.

    A gradient that is an argument of torch.autograd.backward would be held by the caller until the pass ends.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, entry: TapeEntry) -> Tensor:
        ctx.entry = entry
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, None]:
        gradient, ctx.entry.gradient = ctx.entry.gradient, None
        return gradient, None

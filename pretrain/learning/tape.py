"""The passes of one segment during one step: forward, input gradient only, full backward."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .replay import Replay
from .segments import Segment, Weights

Watch = Callable[[str, str], AbstractContextManager[object]]  # kind of a pass, name of a segment or unit -> a context


def unwatched(kind: str, name: str) -> AbstractContextManager[object]:
    """A :data:`Watch` that does nothing."""
    return contextlib.nullcontext()


@dataclass(eq=False)
class TapeEntry:
    """What one segment's forward pass leaves for its backward passes.

    Nothing but this entry holds a gradient or a graph, so autograd can free it during the last pass that needs it.

    Attributes:
        segment: the segment.
        noise: of the forward pass, see :func:`add_noise`.
        input: (2B, C, H, W), a detached view of the output below.
        output: (2B, C', H', W') with its graph; None while no graph is kept.
        replay: what a second forward pass needs to equal the first; None for a segment that is not recomputed.
        gradient: (2B, C', H', W'), where the next backward pass starts: d loss / d output of one loss, or their sum
            for the full backward of a section. None before it is computed and after a pass has used it, and if the
            decoder stops the gradient.
        accumulated: sum of d loss / d output over the losses so far, (2B, C', H', W'). Only the top segment of a
            section has it, from the first loss that trains the section to the full backward pass.
        weights: copies of the parameters of the forward pass, if the backward passes use them in place of the
            parameters.
    """

    segment: Segment
    noise: float
    input: Tensor
    output: Tensor | None = None
    replay: Replay | None = None
    gradient: Tensor | None = None
    accumulated: Tensor | None = None
    weights: Weights | None = None

    def accumulate_gradient(self) -> None:
        """Add ``gradient`` to ``accumulated``."""
        if self.accumulated is None:
            self.accumulated = self.gradient
        elif self.gradient is not None:
            self.accumulated = self.accumulated + self.gradient

    def start_from_accumulated(self) -> None:
        """Let the next backward pass start from the sum over the losses."""
        self.gradient = self.accumulated
        self.accumulated = None

    def input_gradient(self, keep_graph: bool) -> Tensor:
        """Turn ``gradient`` into the gradient at the input. Compute no parameter gradients.

        Args:
            keep_graph: whether the graph stays for another backward pass.

        Returns:
            d loss / d input, (2B, C, H, W).
        """
        start = self._start(keep_graph)
        return torch.autograd.grad(start, self.input, retain_graph=keep_graph)[0]

    def full_backward(self, to_input: bool) -> Tensor | None:
        """Accumulate the gradients of the parameters into their ``.grad``, from ``gradient``. Free the graph.

        Args:
            to_input: whether the gradient at the input is wanted too.

        Returns:
            d loss / d input, (2B, C, H, W), if it is wanted, else None.
        """
        parameters = self.segment.module.parameters() if self.weights is None else self.weights.values()
        wanted: list[Tensor] = [p for p in parameters if p.requires_grad]
        if to_input:
            wanted.append(self.input)
        if wanted:
            torch.autograd.backward(self._start(keep_graph=False), inputs=wanted)
        for name, copy in (self.weights or {}).items():
            if copy.grad is not None:
                parameter = self.segment.module.get_parameter(name)
                parameter.grad = copy.grad if parameter.grad is None else parameter.grad + copy.grad
        return self.input.grad if to_input else None

    def _start(self, keep_graph: bool) -> Tensor:
        """The scalar that a backward pass starts at. No local variable of the pass holds the output."""
        output = self._output_with_graph()
        self.output = output if keep_graph else None
        return _StartAtGradient.apply(output, self)

    def _output_with_graph(self) -> Tensor:
        """The output; the segment runs forward again if no graph is kept."""
        if self.output is not None:
            return self.output
        assert self.replay is not None  # only recomputed segments are without a graph when a gradient arrives
        with self.replay.restored(self.segment.module):
            return self.segment.forward(self.input, self.noise, self.weights)


class Tape(dict[int, TapeEntry]):
    """Index of a segment -> its entry, from the forward to the full backward pass.

    Attributes:
        watch: see the constructor.
    """

    def __init__(self, send_down: Callable[[Tensor], object] | None = None, watch: Watch = unwatched) -> None:
        """
        Args:
            send_down: gets the gradients at the input of the lowest segment, if the segments below it are on another
                device.
            watch: every pass runs inside the context that this returns.
        """
        super().__init__()
        self._send_down, self.watch = send_down, watch

    def hand_down(self, segment: Segment, gradient: Tensor | None) -> None:
        """Let the next backward pass of the segment below start from a gradient at the input, (2B, C, H, W)."""
        if segment.index - 1 in self:
            self[segment.index - 1].gradient = gradient
        else:
            assert self._send_down is not None and gradient is not None
            self._send_down(gradient)


def forward(segment: Segment, h: Tensor, noise: float, tape: Tape, stash: bool = False) -> Tensor:
    """Run a segment forward on a detached view of ``h``, so that no backward pass goes further down.

    Args:
        segment: the segment. It must not change its input, because the view has the memory of ``h``.
        h: (2B, C, H, W), the output of the segment below or the images.
        noise: see :func:`add_noise`.
        tape: gets the segment's entry if a loss reaches the segment. Otherwise nothing is kept.
        stash: compute with copies of the parameters, which the entry keeps: the parameters may be updated before the
            full backward pass.

    Returns:
        The output without its graph, (2B, C', H', W').
    """
    x = h.detach().requires_grad_(segment.needs_input_gradient)
    replay = Replay.now(x.device) if segment.recompute else None
    weights = _copied(segment.module) if stash else None
    with torch.set_grad_enabled(segment.keeps_graph):
        output = segment.forward(x, noise, weights)
    if segment.losses:
        kept = output if segment.keeps_graph else None
        tape[segment.index] = TapeEntry(segment, noise, x, kept, replay, weights=weights)
    return output.detach()


def _copied(module: nn.Module) -> Weights:
    """Copies of a module's parameters, without a graph."""
    return {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in module.named_parameters()}


class _StartAtGradient(torch.autograd.Function):
    """A scalar whose backward hands over entry.gradient instead of using the incoming gradient (1).

    From then on autograd alone holds the gradient, and frees it during the pass. As an argument of
    torch.autograd.backward the caller would hold it to the end of the pass: one tensor of the size of the output.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, entry: TapeEntry) -> Tensor:
        ctx.entry = entry
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, None]:
        gradient, ctx.entry.gradient = ctx.entry.gradient, None
        return gradient, None

"""The schedule of local learning: which forward and backward passes run, in which order.

The encoder's stages learn from the losses of *units*, runs of consecutive stages. A decoder and a loss stand on the top
of each unit, and the gradient is stopped at the unit's input. LoCo's units are [res2 res3] [res3 res4] [res4 res5]: two
units share res3, and two share res4. A shared stage gets the sum of their gradients (Xiong, Ren, Urtasun 2020, Sec. 4).

The usual code runs a shared stage twice, once in each of its units. Here every stage runs forward once, on a detached
copy of the output below. A graph then spans one stage, and the gradient of a loss goes down its unit from stage to
stage: each turns the gradient at its output into the gradient at its input. LoCo makes the passes below. In each row
the forward passes come first, from left to right; then the backward passes, from right to left.

=======  ====================  ====================  ====================  ====================
loss of  res2                  res3                  res4                  res5
=======  ====================  ====================  ====================  ====================
res3     forward,              forward,
         full backward, freed  input gradient
res4                           full backward, freed  forward,
                                                     input gradient
res5                                                 full backward, freed  forward,
                                                                           full backward, freed
=======  ====================  ====================  ====================  ====================

- *forward*: once for all losses. A later loss needs the same output, and the same graph.
- *input gradient*: a later loss will reach this stage too. The loss at hand passes through to the stage below. Its
  gradient at the output is added to those of the losses before. The parameters have to wait, and the graph stays.
- *full backward*: no later loss reaches this stage. One pass computes the gradients of the parameters, from the sum of
  the gradients at the output: for res3, those of the losses of res3 and res4. If only one loss trains the stage, as in
  res2 and res5, the same pass also computes the gradient at the input, where the unit goes further down.
- *freed*: the full backward pass frees the graph, before the next stage runs forward.

A shared stage costs one forward, one input-gradient and one full backward pass. In the usual code it has two forward
and two full backward passes. The gradients are the same (tests/pretrain/learning/test_local.py).

The options of the learner change this as follows:

- Recomputed blocks keep their input but no graph. They run forward again when a gradient is due at their output, and
  give the same output as before (replay.py).
- With the upper gradient only, the last loss is the only one that trains a shared stage (plan.py).
- Noise is added to the output of each stage (noise.py).
- Parallel processes average the gradients of a unit as soon as they are final, by ``ready``.
- GradCache calls this schedule for a few images at a time (gradcache.py). Ties add their gradient before (ties.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .plan import Plan, Section
from .tape import TapeEntry, forward

LossGradient = Callable[[str, Tensor], Tensor]  # a unit's name, its embeddings (2B, D) -> d loss / d embeddings
Ready = Callable[[list[nn.Parameter]], object]  # takes parameters whose gradients are final
Tape = dict[int, TapeEntry]  # index of a segment -> its entry, from the forward to the full backward pass


def forward_backward(
    views: Tensor,
    plan: Plan,
    decoders: nn.ModuleDict,
    loss_gradient: LossGradient,
    ready: Ready,
    noise: float = 0.0,
) -> None:
    """Run forward from the images upwards, and at the top of each unit back down that unit.

    Args:
        views: (2B, 3, H, W), the first views of B images, then the second views.
        plan: the encoder's segments and the sections of each unit.
        decoders: name of each unit -> its decoder, (2B, C, H, W) -> (2B, D).
        loss_gradient: gives the gradient of a unit's loss with respect to its embeddings, (2B, D).
        ready: called once for each unit, before the next segment runs forward.
        noise: see :func:`add_noise`.
    """
    tape: Tape = {}
    h = views
    for segment in plan.segments:
        h, tape[segment.index] = forward(segment, h, noise)
        if segment.unit is not None:
            decoder = decoders[segment.unit]
            tape[segment.index].gradient = _decoder_backward(segment.unit, decoder, h, loss_gradient)
            with torch.autocast(h.device.type, enabled=False):  # autocast is for forward passes only
                final = _walk_down(segment.unit, plan.sections[segment.unit], tape)
            ready([*decoder.parameters(), *final])


def _decoder_backward(unit: str, decoder: nn.Module, h: Tensor, loss_gradient: LossGradient) -> Tensor | None:
    """Train a unit's decoder.

    Args:
        unit: its name.
        decoder: its decoder.
        h: output of its top, (2B, C, H, W).
        loss_gradient: see :func:`forward_backward`.

    Returns:
        d loss / d h, (2B, C, H, W).
    """
    h = h.detach().requires_grad_()
    z = decoder(h)
    gradient = loss_gradient(unit, z)
    with torch.autocast(h.device.type, enabled=False):
        torch.autograd.backward(z, gradient)
    return h.grad


def _walk_down(unit: str, sections: list[Section], tape: Tape) -> list[nn.Parameter]:
    """Carry the gradient of one loss from the top of its unit down to the bottom.

    Args:
        unit: name of the unit. The entry of its top segment holds the gradient of its loss.
        sections: of the unit, from the top down. A section is a run of segments that the same losses reach; in LoCo it
            is one stage.
        tape: loses the entries of the segments that no later loss reaches.

    Returns:
        The parameters of these segments. Their gradients are final.
    """
    final: list[nn.Parameter] = []
    for section in sections:
        top = section.segments[0].index
        goes_down = section is not sections[-1]
        is_last_loss = section.losses[-1] == unit
        is_only_loss = section.trained_by == (unit,)
        if unit in section.trained_by:
            tape[top].accumulate_gradient()
        if goes_down and not is_only_loss:  # the sections below need the gradient of this loss alone, not the sum
            _input_gradient(section, tape, is_last_loss)
        if is_last_loss:
            tape[top].gradient, tape[top].accumulated = tape[top].accumulated, None
            _full_backward(section, tape, to_input=goes_down and is_only_loss)
            final += [p for segment in section.segments for p in segment.module.parameters()]
        else:
            tape[top].gradient = None
    return final


def _input_gradient(section: Section, tape: Tape, is_last_loss: bool) -> None:
    """Turn the gradient at a section's output into the gradient at its input."""
    for segment in section.segments:
        keep_graph = is_last_loss or not segment.recompute  # the last loss needs the graph again at once
        tape[segment.index - 1].gradient = tape[segment.index].input_gradient(keep_graph)


def _full_backward(section: Section, tape: Tape, to_input: bool) -> None:
    """Train a section from the gradient at its output; compute the gradient at its input too if ``to_input``."""
    *upper, bottom = (segment.index for segment in section.segments)
    for index in [*upper, bottom] if to_input else upper:
        tape[index - 1].gradient = tape.pop(index).full_backward(to_input=True)
    if not to_input:
        tape.pop(bottom).full_backward(to_input=False)

"""The schedule of local learning: which forward and backward passes run, in which order.

The encoder's stages learn from the losses of *units*, runs of consecutive stages. A decoder and a loss stand on the top
of each unit, and the gradient is stopped at the unit's input. A unit and its loss are named after the unit's last
stage. LoCo's units are [res2 res3] [res3 res4] [res4 res5]: two units share res3, and two share res4. A shared stage
gets the sum of their gradients (Xiong, Ren, Urtasun 2020, Sec. 4). Two more words are used below:

- *Segment*: a piece of the encoder with its own graph, usually a stage (segments.py).
- *Section*: consecutive segments that the same losses reach (plan.py). In LoCo stage, segment and section coincide.

The usual code runs a shared stage twice, once in each of its units. Here every stage runs forward once, on a detached
view of the output below: the same memory, so a block must not change its input. A graph then spans one stage, and the
gradient of a loss goes down its unit from stage to stage: each turns the gradient at its output into the gradient at
its input. LoCo makes the passes below. In each row the forward passes come first, from left to right; then the backward
passes, from right to left.

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
- *input gradient*: a later loss will reach this stage too. This loss's gradient is carried to the stage below, and is
  added to those of the earlier losses at the stage's output. The parameter gradients are computed later, once, from the
  sum. The graph stays until then.
- *full backward*: no later loss reaches this stage. One pass computes the parameter gradients, from the sum of the
  gradients at the output: for res3, those of the losses of res3 and res4. If one loss alone trains the stage, the same
  pass also gives the input gradient when the unit continues below (res5; not res2, which is a bottom).
- *freed*: the full backward pass frees the graph, before the next stage runs forward.

Other units have two more cases:

- [res3] [res3 res4]: the unit of the first loss ends at the shared res3. The loss runs no pass there. It only adds its
  gradient to the sum, for the full backward of the loss of res4.
- [res3] [res2 res3 res4]: the last loss continues below res3, which an earlier loss trained too. Two passes run on one
  graph: the input gradient, from the gradient of the last loss alone, then the full backward, from the sum.

The shapes below are those of maps, (2B, C, H, W). Vision transformers pass tokens instead, (2B, N, C), of which the
decoders take the map.

Stages above the last loss run forward too, without a graph, and so do all stages if there are no units: the running
averages of BN follow.

A shared stage costs one forward, one input-gradient and one full backward pass. In the usual code it has two forward
and two full backward passes. The gradients are the same (tests/pretrain/learning/test_local.py). Two things differ: the
running averages of BN are updated once instead of twice, and noise is drawn once for both units.

The options of the learner change this as follows:

- ``recompute``: these blocks keep their input but no graph. They run forward again when a gradient is due at their
  output, and give the same output as before (replay.py). But a block whose unit has its loss in the same stage builds a
  graph at once, because the backward pass of this loss comes before the next stage. Only later losses make such a block
  run again. In LoCo no later loss reaches res5, so to recompute it changes nothing.
- ``shared_gradient='upper'``: the last loss alone trains a shared section; the others pass through it (plan.py).
- ``noise``: added to the output of each stage (noise.py).
- ``ready``: parallel processes average gradients as soon as they are final.
- ``chunk``: GradCache calls this schedule for a few images at a time (gradcache.py).
- ``ties``: their gradient is added before the schedule starts (ties.py).
- ``split``: several devices share the stages, each with its part of this schedule (stage_parallel/).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .plan import Plan, Section
from .tape import Tape, Watch, forward, unwatched

LossGradient = Callable[[str, Tensor], Tensor]  # a unit's name, its embeddings (2B, D) -> d loss / d embeddings
Ready = Callable[[list[nn.Parameter]], object]  # takes parameters whose gradients are final


def forward_backward(
    views: Tensor,
    plan: Plan,
    decoders: nn.ModuleDict,
    loss_gradient: LossGradient,
    ready: Ready,
    noise: float = 0.0,
    watch: Watch = unwatched,
) -> None:
    """Run forward from the images upwards, and at the top of each unit back down that unit.

    Args:
        views: (2B, 3, H, W), the first views of B images, then the second views.
        plan: the encoder's segments and the sections of each unit.
        decoders: name of each unit -> its decoder, (2B, C, H, W) -> (2B, D).
        loss_gradient: gives the gradient of a unit's loss with respect to its embeddings, (2B, D).
        ready: called once for each unit, before the next segment runs forward, with the parameters for which this was
            the last loss: those of the decoder, and of the sections that no later loss reaches.
        noise: see :func:`add_noise`.
        watch: every pass runs inside the context that it returns: "forward", "input gradient" or "full backward" and
            the name of a segment, or "loss" and the name of a unit.
    """
    tape = Tape(watch=watch)
    h = views
    del views  # this variable would hold the images to the end of the step
    for segment in plan.segments:
        with watch("forward", segment.name):
            h = forward(segment, h, noise, tape)
        unit = segment.top_of
        if unit is not None:
            with watch("loss", unit):
                tape[segment.index].gradient = decoder_backward(unit, decoders[unit], h, loss_gradient)
            # Autocast is for forward passes only. A segment that runs forward again restores it (replay.py).
            with torch.autocast(h.device.type, enabled=False):
                final = walk_down(unit, plan.sections[unit], tape)
            ready([*decoders[unit].parameters(), *final])


def decoder_backward(unit: str, decoder: nn.Module, h: Tensor, loss_gradient: LossGradient) -> Tensor | None:
    """Backward through the decoder; return the gradient at its input.

    Args:
        unit: its name.
        decoder: its decoder. Its parameters get their gradients.
        h: output of the unit's top, (2B, C, H, W).
        loss_gradient: see :func:`forward_backward`.

    Returns:
        d loss / d h, (2B, C, H, W). None if the decoder stops the gradient; units that do not overlap allow that.
    """
    h = h.detach().requires_grad_()
    z = decoder(h)
    gradient = loss_gradient(unit, z)
    with torch.autocast(h.device.type, enabled=False):
        torch.autograd.backward(z, gradient)
    return h.grad


def walk_down(unit: str, sections: list[Section], tape: Tape, continues: bool = False) -> list[nn.Parameter]:
    """Carry the gradient of one loss from the top of its unit down to the bottom.

    Args:
        unit: name of the unit and its loss. The entry of the top segment of ``sections`` holds the gradient of the
            loss.
        sections: of the unit, from the top down.
        tape: the entries of the unit's segments. Those that no later loss reaches are removed.
        continues: whether the unit continues below these sections, on another device, which gets the gradient as soon
            as it is computed (:meth:`Tape.hand_down`).

    Returns:
        The parameters of the segments that no later loss reaches. Their gradients are final.
    """
    final: list[nn.Parameter] = []
    for section in sections:
        top_index = section.segments[0].index  # a variable with the entry itself would hold its tensors too long
        continues_below = continues or section is not sections[-1]
        is_last_loss = section.losses[-1] == unit
        is_only_trainer = section.trained_by == (unit,)
        if unit in section.trained_by:
            tape[top_index].accumulate_gradient()
        if continues_below and not is_only_trainer:
            # Below, this loss's own gradient is needed; the full backward starts from the sum, so it cannot supply it.
            _input_gradient(section, tape, is_last_loss)
        if is_last_loss:
            tape[top_index].start_from_accumulated()
            _full_backward(section, tape, to_input=continues_below and is_only_trainer)
            final += [p for segment in section.segments for p in segment.module.parameters()]
        else:
            _leave_to_later_loss(section, tape)
    return final


def _input_gradient(section: Section, tape: Tape, is_last_loss: bool) -> None:
    """Turn the gradient at a section's output into the gradient at its input."""
    for segment in section.segments:
        # The last loss keeps it anyway: its full backward comes next, on the same graph.
        keep_graph = is_last_loss or not segment.recompute
        with tape.watch("input gradient", segment.name):
            tape.hand_down(segment, tape[segment.index].input_gradient(keep_graph))


def _full_backward(section: Section, tape: Tape, to_input: bool) -> None:
    """Turn the gradient at a section's output into parameter gradients; into its input gradient too if ``to_input``."""
    for segment in section.segments:
        with tape.watch("full backward", segment.name):
            if to_input or segment is not section.segments[-1]:
                tape.hand_down(segment, tape.pop(segment.index).full_backward(to_input=True))
            else:
                tape.pop(segment.index).full_backward(to_input=False)


def _leave_to_later_loss(section: Section, tape: Tape) -> None:
    """Free what a later loss does not need: this loss's own gradient, and graphs that can be built again."""
    tape[section.segments[0].index].gradient = None
    for segment in section.segments:
        if segment.recompute:
            tape[segment.index].output = None

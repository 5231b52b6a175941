"""The schedule of local learning on one of several devices, each of which has a run of consecutive stages.

The schedule of local.py is cut between two stages. What crosses the cut in a step is

- one activation up: the output of the highest stage below the cut, detached, as every stage sees it anyway. It is sent
  as soon as it is there, before the loss below the cut is computed;
- one gradient down for each unit that has stages on both sides: that of its loss at the cut. It is sent as soon as the
  walk down the unit arrives there, before the parameter gradients above are computed. GIM and blockwise learning have
  no such unit: nothing comes down.

With LoCo's units [res2 res3] [res3 res4] [res4 res5] and a cut between res3 and res4:

=============================================  ====================================================================
device 0: res2, res3                           device 1: res4, res5
=============================================  ====================================================================
forward res2, res3; send the output of res3
loss of res3: input gradient of res3, full     receive it; forward res4; loss of res4: input gradient of res4;
backward of res2                               send it
receive it; full backward of res3; update      forward res5; loss of res5: full backward of res5 and res4; update
=============================================  ====================================================================

The gradients are those of one process, and are added in the same order. The random generators' state travels with the
activation, so that noise is the same, too. With ``late``, a device does not wait for the gradients from above: it takes
those of the batch before. The stages that these losses reach are then trained by the gradient of the batch before (of
all losses that train them), with copies of the weights that this batch was computed with; all others as ever.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..learner import LocalLearner
from ..local import Ready, decoder_backward, walk_down
from ..replay import RandomState, uncached_autocast
from ..segments import Segment
from ..tape import Tape, Watch, forward, unwatched
from .ports import Ports

Receipts = list[Callable[[], Tensor]]


class Share:
    """The stages of a learner that one device trains, with the decoders and losses on them.

    Attributes:
        learner: the whole learner. :meth:`drop_others` frees what other devices train.
        device: see the constructor.
        segments: those of the device, from the image upwards.
        is_lowest: whether the device gets the images.
        is_highest: whether no device is above it.
        late: see the constructor.
    """

    def __init__(self, learner: LocalLearner, device: int, late: bool = False) -> None:
        """
        Args:
            learner: built with ``split``.
            device: index of the device in ``split``.
            late: take the gradients from above one batch later, instead of waiting for them.

        Raises:
            ValueError: if the learner cannot be trained so.
        """
        refuse_impossible(learner, late)
        plan = learner.plan
        self.learner, self.device, self.late = learner, device, late
        self.segments = plan.devices[device]
        self.is_lowest, self.is_highest = device == 0, device + 1 == len(plan.devices)
        own = {segment.index for segment in self.segments}
        self._sections = {
            unit: [section for section in sections if section.segments[0].index in own]
            for unit, sections in plan.sections.items()
        }
        self._continuing = {
            unit
            for unit, sections in plan.sections.items()
            if self._sections[unit] and sections[-1].segments[-1].index < min(own)
        }
        top = self.segments[-1]
        from_above = [] if self.is_highest else [unit for unit in top.losses if unit != top.top_of]
        next_tops = set() if self.is_highest else {segment.top_of for segment in plan.devices[device + 1]}
        self._direct = [unit for unit in from_above if unit in next_tops]  # their losses are on the next device
        self._handed_on = [unit for unit in from_above if unit not in next_tops]
        self._reached = {segment.index for segment in self.segments if set(from_above) & set(segment.losses)}
        self._waiting: tuple[Tape, Receipts] | None = None  # of the batch before

    @property
    def units(self) -> list[str]:
        """Names of the units whose losses are on this device."""
        return [segment.top_of for segment in self.segments if segment.top_of is not None]

    @property
    def gradients(self) -> tuple[int, int]:
        """How many gradients come from above in a step, and how many go down."""
        return len(self._direct) + len(self._handed_on), len(self._continuing)

    def late_parameters(self) -> list[nn.Parameter]:
        """The parameters that learn one batch late."""
        late = self._reached if self.late else set()
        return [p for segment in self.segments if segment.index in late for p in segment.module.parameters()]

    def drop_others(self) -> None:
        """Free the parameters and buffers that other devices train: they become tensors without memory ("meta").

        What is in no stage stays on the lowest device.
        """
        owners = _owners(self.learner)
        for module in self.learner.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                if owners.get(id(p), 0) != self.device:
                    setattr(module, name, nn.Parameter(p.detach().to("meta"), p.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                if owners.get(id(buffer), 0) != self.device:
                    setattr(module, name, buffer.to("meta"))

    def forward_backward(
        self,
        ports: Ports,
        views: Tensor | None = None,
        ready: Ready = lambda parameters: None,
        prepare: Callable[[Tensor], Tensor] = lambda views: views,
        watch: Watch = unwatched,
    ) -> dict[str, Tensor]:
        """Accumulate the gradients of this device's parameters into ``.grad``.

        Args:
            ports: to the devices below and above.
            views: (2B, 3, H, W), the first views of B images, then the second views; on the lowest device only.
            ready: called once for each loss that reaches the device, with the list of parameters for which it was the
                last one.
            prepare: function of views, such as normalisation.
            watch: see :func:`pretrain.learning.local.forward_backward`; "wait" in addition, for a message.

        Returns:
            Name of each unit with its loss here -> the loss, a detached scalar.
        """
        losses: dict[str, Tensor] = {}
        noise = self.learner.noise if self.learner.training else 0.0
        tape, device = Tape(None if self.is_lowest else ports.send_gradient, watch), self._where()
        due: tuple[Tape, Receipts] | None = None

        def loss_gradient(unit: str, z: Tensor) -> Tensor:
            losses[unit], gradient = self.learner.loss_and_gradient(z)
            return gradient

        with uncached_autocast(device):
            h = self._input(ports, views, prepare, watch)
            del views
            for segment in self.segments:
                with watch("forward", segment.name):
                    h = forward(segment, h, noise, tape, stash=self.late and segment.index in self._reached)
                random = None
                if segment is self.segments[-1] and not self.is_highest:
                    random = RandomState.now(device)
                    ports.send_activation(h, random)
                    due = self._begin_to_receive(ports, tape)
                if segment.top_of is not None:
                    with watch("loss", segment.top_of):
                        decoder = self.learner.decoders[segment.top_of]
                        tape[segment.index].gradient = decoder_backward(segment.top_of, decoder, h, loss_gradient)
                    _refuse_draws(random, segment)
                    self._walk(segment.top_of, tape, ready)
            del h
            self._learn_from_above(due, ready)
        return losses

    def drain(self, ports: Ports, ready: Ready = lambda parameters: None) -> None:
        """With ``late``: wait for the gradients of the last batch, and add what it teaches to ``.grad``.

        Afterwards nothing is on its way. To be called on all devices, after the optimiser's step.

        Args:
            ports: to the devices below and above.
            ready: as of :meth:`forward_backward`.
        """
        if self._waiting is not None:
            (tape, receipts), self._waiting = self._waiting, None
            self._learn_from_above((tape, [*receipts, *(ports.receive_gradient() for _ in self._handed_on)]), ready)

    def _where(self) -> torch.device:
        """Where the device's parameters are."""
        modules = (segment.module for segment in self.segments)
        tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def _input(self, ports: Ports, views: Tensor | None, prepare: Callable[[Tensor], Tensor], watch: Watch) -> Tensor:
        """The input of the lowest segment; the random generators go on from where those below are."""
        if views is not None:
            return prepare(views)
        with watch("wait", "activation"):
            h, random = ports.receive_activation()
        random.go_on()
        return h

    def _begin_to_receive(self, ports: Ports, tape: Tape) -> tuple[Tape, Receipts] | None:
        """Begin to receive what the devices above send for this batch.

        Returns:
            The tape and the gradients that this step has to wait for.
        """
        receipts: Receipts = [ports.receive_gradient() for _ in self._direct]
        if not self.late:
            return tape, [*receipts, *(ports.receive_gradient() for _ in self._handed_on)]
        before, self._waiting = self._waiting, (tape, receipts)
        if before is None:
            return None
        # The next device hands on the gradients of the batch before, after it has sent its own of this batch
        return before[0], [*before[1], *(ports.receive_gradient() for _ in self._handed_on)]

    def _learn_from_above(self, due: tuple[Tape, Receipts] | None, ready: Ready) -> None:
        """Let the losses above train what they reach here, the lowest loss first."""
        if due is None:
            return
        tape, receipts = due
        for unit, receive in zip([*self._direct, *self._handed_on], receipts, strict=True):
            with tape.watch("wait", f"gradient of {unit}"):
                tape[self.segments[-1].index].gradient = receive()
            self._walk(unit, tape, ready)

    def _walk(self, unit: str, tape: Tape, ready: Ready) -> None:
        """Carry a gradient down the part of its unit that is here."""
        # Autocast is for forward passes only. A segment that runs forward again restores it (replay.py).
        with torch.autocast(self._where().type, enabled=False):
            final = walk_down(unit, self._sections[unit], tape, continues=unit in self._continuing)
        decoder = self.learner.decoders[unit].parameters() if unit in self.units else ()
        ready([*decoder, *final])


def refuse_impossible(learner: LocalLearner, late: bool) -> None:
    """Refuse what several devices cannot train as one would.

    Args:
        learner: built with ``split``.
        late: see :class:`Share`.

    Raises:
        ValueError: saying why.
    """
    plan = learner.plan
    every = [segment for segment in plan.segments if segment.losses]
    if len(plan.sections) == 1 and len(every) == len(plan.segments) > 1:
        raise ValueError(
            f"the unit of {next(iter(plan.sections))} has all stages: end-to-end learning trains nothing before the "
            "gradient has come down from the highest device, so that one device would work at a time"
        )
    if learner.ties:
        raise ValueError("a penalty ties decoders to stages, which may be on another device (MODEL.DECODER.TIE)")
    if isinstance(learner.loss, nn.Module) and learner.loss.state_dict():
        raise ValueError("the loss has parameters or buffers, which the losses of several devices would share")
    _owners(learner)
    if late and not any(segments[0].needs_input_gradient for segments in plan.devices[1:]):
        raise ValueError("no unit has stages on two devices: no gradient comes down that could be late")


def _owners(learner: LocalLearner) -> dict[int, int]:
    """Id of each parameter and buffer in a stage or a decoder -> index of its device.

    Raises:
        ValueError: if two devices share one.
    """
    owners: dict[int, int] = {}
    for device, segments in enumerate(learner.plan.devices):
        tops = [segment.top_of for segment in segments if segment.top_of is not None]
        for module in [*(segment.module for segment in segments), *(learner.decoders[top] for top in tops)]:
            for tensor in (*module.parameters(), *module.buffers()):
                if owners.setdefault(id(tensor), device) != device:
                    raise ValueError(f"devices {owners[id(tensor)]} and {device} share a parameter of the network")
    return owners


def _refuse_draws(random: RandomState | None, segment: Segment) -> None:
    """ValueError if a decoder has drawn random numbers after their state was sent upwards."""
    if random is not None and not torch.equal(random.cpu, RandomState.now(random.device).cpu):
        raise ValueError(
            f"the decoder of {segment.top_of} draws random numbers (dropout), so that no device can begin above "
            f"{segment.name}: choose another MODEL.STAGE_PARALLEL.SPLIT"
        )

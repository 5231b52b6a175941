"""The ports of a process to those that have the stages below and above its own."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...learning.replay import RandomState
from ...processes.messages import Channel, Layout, Lost
from ...processes.stage_mesh import StageMesh

RANDOM, FIGURES = 1, 2  # tags of the small messages


class NetworkPorts:
    """Activations and gradients to and from the neighbours, over torch.distributed.

    The first activation is announced by its layout, which all later messages between the two processes have: no other
    message has a header. The next activation is received while the batch at hand is computed.

    Attributes:
        is_last: whether the batch at hand is the last one. The lowest stages decide it, before their
            :meth:`send_activation`, and it travels upwards with the activation.
    """

    def __init__(self, mesh: StageMesh, device: torch.device, lost: Lost, gradients: tuple[int, int]) -> None:
        """
        Args:
            mesh: the processes.
            device: of the tensors.
            lost: see :class:`Channel`.
            gradients: how many gradients come from above, and go down, in a step.
        """
        self.is_last, self._device = False, device
        self._below: Layout | None = None  # what is exchanged with the process below
        self._above: Layout | None = None
        self._next: Callable[[], Tensor] | None = None  # the activation that is on its way
        below, above = (mesh.rank_of(mesh.stage + step) for step in (-1, 1))
        self._from_below, self._to_above = (Channel(peer, mesh.up, lost) for peer in (below, above))
        self._state_from_below, self._state_to_above = (
            Channel(peer, mesh.aside, lost, RANDOM, most=2) for peer in (below, above)
        )
        self._to_below = Channel(below, mesh.down, lost, most=max(1, gradients[1]))
        self._from_above = Channel(above, mesh.down, lost)

    @property
    def bytes(self) -> int:
        """What has been sent so far."""
        channels = (self._to_above, self._state_to_above, self._to_below)
        return sum(channel.bytes for channel in channels)

    def send_activation(self, h: Tensor, random: RandomState) -> None:
        """See :class:`pretrain.learning.stage_parallel.ports.Ports`."""
        if self._above is None:
            self._above = Layout.of(h)
            self._state_to_above.send(self._above.encoded())
        cuda = torch.empty(0, dtype=torch.uint8) if random.cuda is None else random.cuda
        self._state_to_above.send(torch.cat([torch.tensor([self.is_last], dtype=torch.uint8), random.cpu, cuda]))
        self._to_above.send(self._above.flat(h))

    def receive_activation(self) -> tuple[Tensor, RandomState]:
        """See :class:`pretrain.learning.stage_parallel.ports.Ports`."""
        if self._below is None:
            self._below = Layout.decoded(self._state_from_below.receive(Layout.empty_code())())
        receive = self._next or self._begin()
        count = len(torch.get_rng_state())
        cuda = len(torch.cuda.get_rng_state(self._device)) if self._device.type == "cuda" else 0
        message = self._state_from_below.receive(torch.empty(1 + count + cuda, dtype=torch.uint8))()
        self.is_last = bool(message[0])
        h = receive()
        self._next = None if self.is_last else self._begin()
        state = message[1:]
        return h, RandomState(state[:count].clone(), state[count:].clone() if cuda else None, self._device)

    def send_gradient(self, gradient: Tensor) -> None:
        """See :class:`pretrain.learning.stage_parallel.ports.Ports`."""
        assert self._below is not None
        self._to_below.send(self._below.flat(gradient))

    def receive_gradient(self) -> Callable[[], Tensor]:
        """See :class:`pretrain.learning.stage_parallel.ports.Ports`."""
        assert self._above is not None
        return self._receive(self._from_above, self._above)

    def flush(self) -> None:
        """Wait until everything is sent."""
        for channel in (self._to_above, self._state_to_above, self._to_below):
            channel.flush()

    def _begin(self) -> Callable[[], Tensor]:
        assert self._below is not None
        return self._receive(self._from_below, self._below)

    def _receive(self, channel: Channel, layout: Layout) -> Callable[[], Tensor]:
        tensor = layout.empty(self._device)
        wait = channel.receive(layout.flat(tensor))

        def received() -> Tensor:
            wait()
            return tensor

        return received

"""Losses, and other figures of each step, on their way to the process that logs them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ...processes.messages import Channel, Lost
from ...processes.stage_mesh import StageMesh
from .ports import FIGURES


class Figures:
    """Brings figures of every step to process 0, which waits for them only when it asks."""

    def __init__(self, mesh: StageMesh, counts: Sequence[int], lost: Lost) -> None:
        """
        Args:
            mesh: the processes. Those of its first column send figures.
            counts: how many figures each run of stages has.
            lost: see :class:`Channel`.
        """
        self._counts, self._is_used = list(counts), mesh.copy == 0
        self._mine: deque[tuple[int, list[float]]] = deque()  # of process 0: iteration, its own figures
        self._theirs: deque[list[Callable[[], Tensor]]] = deque()
        self._to_first: Channel | None = None
        self._to_me: list[Channel] = []
        if mesh.stage == 0:
            self._to_me = [Channel(mesh.rank_of(s), mesh.aside, lost, FIGURES) for s in range(1, mesh.stages)]
        else:
            self._to_first = Channel(mesh.rank_of(0), mesh.aside, lost, FIGURES, most=64)

    def put(self, iteration: int, figures: Sequence[float]) -> None:
        """Send the figures of an iteration of this process."""
        if not self._is_used:
            return
        if self._to_first is not None:
            self._to_first.send(torch.tensor(figures, dtype=torch.float64))
            return
        self._mine.append((iteration, list(figures)))
        self._theirs.append(
            [
                channel.receive(torch.empty(count, dtype=torch.float64))
                for channel, count in zip(self._to_me, self._counts[1:], strict=True)
            ]
        )

    def collect(self) -> Iterator[tuple[int, list[list[float]]]]:
        """On process 0: the iterations since the last call, with the figures of each run of stages."""
        while self._mine:
            iteration, mine = self._mine.popleft()
            yield iteration, [mine, *(receive().tolist() for receive in self._theirs.popleft())]

    def flush(self) -> None:
        """Wait until everything is sent."""
        if self._to_first is not None:
            self._to_first.flush()

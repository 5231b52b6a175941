"""SIGTERM to any of the processes that share the stages: all end after the same iteration."""

import itertools

import torch.distributed as dist
from detectron2.utils import comm

from ...processes.distributed import any_process
from ...processes.sigterm_hook import StopOnSigterm
from ...processes.stage_mesh import StageMesh
from .ports import NetworkPorts

KEY = "loco-det: SIGTERM in run"
_runs = itertools.count()


class StopTogether(StopOnSigterm):
    """Ends a training after SIGTERM without a step in which all processes wait for each other.

    A process that gets the signal says so in torch.distributed's store. The lowest stages look there before each
    iteration, and their activation tells those above that the iteration is the last one.
    """

    saves_everywhere = True

    def __init__(self, mesh: StageMesh, ports: NetworkPorts) -> None:
        """
        Args:
            mesh: the processes.
            ports: of this process.
        """
        super().__init__()
        self._mesh, self._ports, self._told = mesh, ports, False
        self._key, self._store = f"{KEY} {next(_runs)}", dist.distributed_c10d._get_default_store()

    def is_wanted(self) -> bool:
        """On the lowest stages: whether any process has got the signal; the same answer in all of them."""
        return any_process(self.received or self._store.check([self._key]), self._mesh.data)

    def after_step(self) -> None:
        if self.received and not self._told:
            self._store.set(self._key, "1")
            self._told = True
        super().after_step()

    def _ends_here(self) -> bool:
        return self._ports.is_last

    def _newest(self) -> str:
        return comm.all_gather(super()._newest())[0]

"""A second forward pass that equals the first: the same random numbers, the same precision, BN's averages untouched."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class RandomState(NamedTuple):
    """State of torch's random generators.

    Attributes:
        cpu: that of the CPU's generator.
        cuda: that of the generator of ``device``, if it is a GPU.
        device: where the network runs.
    """

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        """The present state of the generators."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None, device)

    def go_on(self) -> None:
        """Let the generators of this process go on from this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Draw the numbers that followed this state; afterwards the generators go on as if nothing was drawn."""
        with torch.random.fork_rng([] if self.cuda is None else [self.device]):
            self.go_on()
            yield


class Replay(NamedTuple):
    """What a forward pass depended on besides its input and the parameters.

    Attributes:
        random: state of the random generators before it.
        autocast_dtype: low precision of autocast, such as torch.bfloat16.
        autocast: whether autocast was on.
    """

    random: RandomState
    autocast_dtype: torch.dtype
    autocast: bool

    @classmethod
    def now(cls, device: torch.device) -> "Replay":
        """What a forward pass that starts now depends on."""
        dtype = torch.get_autocast_dtype(device.type)
        return cls(RandomState.now(device), dtype, torch.is_autocast_enabled(device.type))

    @contextlib.contextmanager
    def restored(self, module: nn.Module) -> Iterator[None]:
        """Run ``module`` forward as before, with a graph."""
        autocast = torch.autocast(self.random.device.type, self.autocast_dtype, self.autocast, cache_enabled=False)
        with autocast, torch.enable_grad(), running_statistics_kept(module), self.random.restored():
            yield


@contextlib.contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """BN normalises as it does in training, and leaves its running statistics: a batch must not count twice."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def uncached_autocast(device: torch.device) -> torch.autocast:
    """Autocast as it is now, but for its cache of weights in low precision.

    A weight that was cast in a pass without a graph stays in the cache without its graph. A later pass with a graph
    would take it from there, and its gradient would be lost.
    """
    dtype, enabled = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, dtype, enabled, cache_enabled=False)

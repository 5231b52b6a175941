"""What a process holds, and how much memory that takes."""

import contextlib
import resource

import torch
from torch import nn

from ...processes.cpu import forget_peak, give_back_freed

STATES = {"LARS": 1, "Lars": 1, "SGD": 1, "AdamW": 2}  # tensors of an optimiser's state for each parameter


def memory_line(name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """One line about the memory of a process, but for activations.

    Args:
        name: of the process.
        model: whose parameters without memory ("meta") are those of other processes.
        optimizer: of the others.
    """
    sizes = [p.numel() * p.element_size() / 1e6 for p in model.parameters() if not p.is_meta]
    whole = sum(p.numel() * p.element_size() / 1e6 for p in model.parameters())
    own, states = sum(sizes), STATES[type(optimizer).__name__]
    return (
        f"{name}: {own:.1f} of {whole:.1f} MB of weights, as much for gradients, and {own * states:.1f} MB of the "
        "optimiser's state"
    )


def give_back_all() -> None:
    """Give memory that is free now back to the system, and let :func:`resident` count anew."""
    give_back_freed()
    forget_peak()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def resident(device: str) -> float:
    """The most memory that this process has had, in bytes: of a GPU what torch has allocated, else of the system's."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as f:
        # getrusage would also count what the process that started this one had
        return next(float(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # in bytes on macOS

"""What a process holds, and how much memory that takes."""

import resource

import torch
from torch import nn

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


def resident(device: str) -> float:
    """The most memory that this process has had, in bytes: of a GPU what torch has allocated, else of the system's."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # Linux counts in KiB

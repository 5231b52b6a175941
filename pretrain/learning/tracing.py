"""Whether a tool records the network."""

import torch


def is_traced() -> bool:
    """Whether torch.jit.trace, torch.compile or torch.export (and so torch.onnx) records the running forward pass.

    These tools know torch's own functions only, no torch.autograd.Function of ours.
    """
    return torch.jit.is_tracing() or torch.compiler.is_compiling()

"""Whether a tool records the network: torch.jit.trace, torch.compile, torch.export or torch.onnx."""

import torch


def is_traced() -> bool:
    """Whether the running forward pass is recorded by such a tool. They know torch's own functions only."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()

"""A device that computes nothing: torch's "meta" stands in for a GPU, and what a GPU refuses is an error.

Code that mixes the two kinds of tensors, or that leaves a tensor on the CPU, runs on the CPU without notice, and fails
on a GPU. Under :class:`OneDevice` it fails on the CPU, too.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = {"_to_copy", "copy_"}  # from device to device; everything else is on one


class OneDevice(TorchDispatchMode):
    """RuntimeError if an operation gets tensors of several devices; numbers without dimensions may be anywhere.

    What leaves the device is made of ones, so that code that looks at a value goes on.

    Attributes:
        operations: number of those that ran on the device.
    """

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in tensors if t.dim()}
        if len(devices) > 1 and name not in COPIES:
            raise RuntimeError(f"{func} got tensors on {' and '.join(sorted(devices))}")
        on_meta = "meta" in {t.device.type for t in tensors}
        self.operations += on_meta
        if name == "_local_scalar_dense" and on_meta:
            return torch.ones((), dtype=tensors[0].dtype).item()
        if name == "_to_copy" and on_meta and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return torch.ones(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        return func(*args, **kwargs)


@contextlib.contextmanager
def meta_for_gpu(monkeypatch):
    """Within it, "meta" is a device that training runs on; torch has no autocast there. Gives :class:`OneDevice`."""

    class NoAutocast(contextlib.nullcontext):
        def __init__(self, *args, **kwargs):
            super().__init__()

    with monkeypatch.context() as patched, OneDevice() as mode:
        patched.setattr(torch, "autocast", NoAutocast)
        patched.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
        patched.setattr(torch, "is_autocast_enabled", lambda device: False)
        yield mode

"""How a process computes on a CPU: what makes steps slow there, and is no matter of arithmetic."""

import contextlib
import ctypes
import sys
from collections.abc import Callable

import torch

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's mallopt (malloc.h)


def prepare_cpu(device: str, keep_freed_memory: bool) -> None:
    """Prepare this process to train or evaluate; to be called before the model is built.

    Denormal numbers become zero: they made single steps ten times slower. Freed memory is kept, if that is asked for:
    see :func:`keep_freed`.

    Args:
        device: MODEL.DEVICE; on another one than a CPU memory is left alone.
        keep_freed_memory: MODEL.KEEP_FREED_MEMORY.
    """
    torch.set_flush_denormal(True)
    if keep_freed_memory and device.partition(":")[0] == "cpu":
        keep_freed()


def keep_freed() -> bool:
    """Let malloc keep what is freed for what is allocated next, instead of giving it back to the system.

    The system clears each page of a tensor of several MB when it is first touched, and a pretraining
    step allocates and frees hundreds of them (benchmarks/allocator.py). The process then stays as large as it ever was,
    and is larger by what lies between tensors of different sizes.

    Returns:
        bool: whether the C library has it: glibc has, others are left alone.
    """
    mallopt = _of_malloc("mallopt")
    return mallopt is not None and bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))


def give_back_freed() -> bool:
    """Let malloc give memory that is free now back to the system, also where :func:`keep_freed` keeps it.

    Returns:
        bool: whether any was given back.
    """
    trim = _of_malloc("malloc_trim")
    return trim is not None and bool(trim(ctypes.c_size_t(0)))


def forget_peak() -> None:
    """Begin this process's high-water mark of memory anew, where the system allows it (Linux)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def _of_malloc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None in other C libraries, such as musl."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None

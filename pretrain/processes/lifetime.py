"""Processes that end with their parent, whatever ends that: SIGKILL, a closed terminal, a crash.

As a script, ``python lifetime.py PARENT SCRIPT [ARGUMENT ...]`` runs ``python SCRIPT [ARGUMENT ...]`` until the process
PARENT ends: see :func:`tied_to_this_process`. It imports the standard library only, which keeps that fast.
"""

import contextlib
import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable

SECONDS = 1.0  # between two checks that the parent is running
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with_parent(parent: int | None = None) -> None:
    """Have this process killed with SIGKILL when its parent ends; at once if it has ended already.

    On Linux the kernel does so, whatever this process is doing. A thread that watches the parent does so, too: for
    other systems, and because :mod:`torch.multiprocessing` replaces the kernel's SIGKILL by a signal that a process
    waiting for others does not handle.

    Args:
        parent: process id; None: the process that started this one by :mod:`multiprocessing`.

    Raises:
        ValueError: if ``parent`` is None and :mod:`multiprocessing` did not start this process.
    """
    starter = multiprocessing.parent_process()
    watched = parent or (starter.pid if starter else None)
    if not watched:
        raise ValueError("multiprocessing did not start this process: which is its parent?")
    ask_kernel()
    started_by = os.getppid()  # differs from the parent if a wrapper or a fork server is between them

    def watch() -> None:
        while os.getppid() == started_by and is_running(watched):
            time.sleep(SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    if started_by != watched and not is_running(watched):  # it has ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    start_thread(watch)


def start_worker(*_: object) -> None:
    """Tie a data loader's worker to its parent: it ends with the parent, and on the parent's SIGTERM only.

    A cluster sends SIGTERM to all processes of a job, and the parent still needs batches to finish its iteration.

    Args:
        _: ignored; the index that a loader passes to its ``worker_init_fn``.
    """
    end_with_parent()
    sys.excepthook = _say_unless_parent_is_gone
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not report a signal's sender
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    start_thread(wait_for_parent)


def _say_unless_parent_is_gone(kind, error, trace):
    """Print an error, but not that of the thread which hands batches over when the parent has stopped taking them."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def start_thread(function: Callable[[], object]) -> threading.Thread:
    """Call a function in a daemon thread with all signals blocked.

    Otherwise the thread would receive the signals that the main thread blocks.
    """
    thread = threading.Thread(target=function, daemon=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()  # inherits the mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return thread


def ask_kernel() -> None:
    """Have Linux kill this process when the thread that started it ends; on other systems nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether a process of that id is running on this machine; one that has ended but not been waited for is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as f:  # Linux: Z is a zombie, X is dead
        return f.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def tied_to_this_process(script: str | os.PathLike[str], *arguments: str) -> list[str]:
    """The command ``python SCRIPT ARGUMENTS``, for :mod:`subprocess`, with a process that ends with this one.

    Args:
        script: a Python script.
        arguments: of its command line.
    """
    return [sys.executable, os.path.abspath(__file__), str(os.getpid()), str(script), *arguments]


def module_tied_to_this_process(module: str, *arguments: str) -> list[str]:
    """The same of ``python -m MODULE ARGUMENTS``, for a module of this checkout or installation."""
    return tied_to_this_process("-m", module, *arguments)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    if sys.argv[0] == "-m":
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # beside pretrain/
        del sys.path[0], sys.argv[0]  # the path of this file
        if root not in sys.path:  # a checkout; before the standard library site-packages would hide modules of it
            sys.path.insert(0, root)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        sys.exit()
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))  # as python does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")

"""Processes that end with the one that has started them, whatever has ended that: SIGKILL, a closed terminal, a crash.

Run as a script, ``python lifetime.py PARENT SCRIPT [ARGUMENT ...]``, it is ``python SCRIPT [ARGUMENT ...]`` that ends
with the process PARENT: see :func:`tied_to_this_process`. So it imports the standard library only.
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

SECONDS = 1.0  # between two looks at the parent
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with_parent(parent=None):
    """Have this process killed as soon as its parent has ended; at once if it has ended already.

    On Linux the kernel does it, whatever this process is doing. A thread that looks at the parent does it as well:
    elsewhere there is no such kernel, and :mod:`torch.multiprocessing` sets another signal for its children, which one
    that waits for other processes never looks at.

    Args:
        parent: process id; None: of the process that has started this one by :mod:`multiprocessing`.
    """
    parent = parent or multiprocessing.parent_process().pid
    ask_kernel()
    started_by = os.getppid()  # another one than ``parent`` if a wrapper or a fork server is between them

    def watch():
        while os.getppid() == started_by and is_running(parent):
            time.sleep(SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    if started_by != parent and not is_running(parent):  # it has ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    start_thread(watch)


def start_thread(function):
    """Call a function in a thread that ends with the process, and that none of the process's signals goes to: where
    the main thread blocks one, this must not take it in its place.

    Returns:
        threading.Thread
    """
    thread = threading.Thread(target=function, daemon=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()  # with what is blocked here
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return thread


def ask_kernel():
    """Let Linux kill this process when the thread that has started it ends; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_running(pid):
    """Whether there is a process of that id on this machine that has not ended yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as f:  # Linux: one that nobody has waited for is left
        return f.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def tied_to_this_process(script, *arguments):
    """The command ``python SCRIPT ARGUMENTS``, for subprocess, whose process ends with this one.

    Args:
        script: path of a Python script.
        arguments: strings.

    Returns:
        list[str]
    """
    return [sys.executable, os.path.abspath(__file__), str(os.getpid()), str(script), *arguments]


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))  # as python does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")

"""Runs a command line in which a fault happens: ``inject.py FAULT MOMENT FOLDER TRACE SCRIPT [ARGUMENT ...]``.

    none  nothing happens; TRACE gets a line for each operation on files below FOLDER, and the seconds of processor time
    kill  SIGKILL in the place of the operation of that number
    time  the kernel kills the process after so many seconds of processor time, whatever it is doing
    full  from the operation of that number on the disk is full: nothing can be written to files below FOLDER any more,
          those that are open included; the system says so itself, as they are /dev/full then
    worker  SIGKILL to a worker of a loader, as of a system without memory, when the batch of that number is asked for

Operations are opening a file to write, renaming, removing, making folders, and fsync.
"""

import atexit
import builtins
import contextlib
import fcntl
import io
import os
import runpy
import signal
import sys
import threading
import time
import traceback

ON_NAMES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}  # audit event -> which argument is the name
WRITING = os.O_WRONLY | os.O_RDWR


class Fault:
    """Counts the operations of this process, and does what is to be done at one of them."""

    def __init__(self, kind, moment, folder, trace):
        self.kind, self.moment, self.folder = kind, float(moment), os.path.realpath(folder)
        self.count, self.is_full = 0, False
        self.busy, self.lock = threading.local(), threading.RLock()  # TensorBoard writes in a thread of its own
        self.trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if kind == "worker":
            self.watch_loaders()
        elif kind == "time":
            signal.setitimer(signal.ITIMER_PROF, self.moment)  # SIGPROF, whose default is to end the process
        else:
            sys.addaudithook(self.hear)
            self.opened = builtins.open
            builtins.open = io.open = self.open
            self.fsync, os.fsync = os.fsync, self.synced

    def watch_loaders(self):
        from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Batches

        next_batch = Batches._next_data

        def watched(batches):
            if self.count == self.moment:
                os.kill(batches._workers[0].pid, signal.SIGKILL)
            self.count += 1
            return next_batch(batches)

        Batches._next_data = watched

    def hear(self, event, arguments):
        """An audit hook, called before the operation."""
        if event == "open" and (arguments[2] or 0) & WRITING:
            self.operation(event, arguments[0])
        elif event in ON_NAMES:
            self.operation(event, arguments[ON_NAMES[event]])

    def synced(self, descriptor):
        self.operation("fsync", f"/proc/self/fd/{descriptor}")
        if os.readlink(f"/proc/self/fd/{descriptor}") != "/dev/full":  # for which there is no such thing
            self.fsync(descriptor)

    def open(self, *arguments, **options):
        file = self.opened(*arguments, **options)
        if self.is_full:
            self.fill()
        return file

    def operation(self, event, name):
        if getattr(self.busy, "here", False) or not self.is_below(name):
            return
        with self.lock:
            self.count_it(event, name)

    def count_it(self, event, name):
        self.busy.here = True  # what this does is none of its own
        os.write(self.trace, f"{event} {name!r}\n".encode())
        if self.kind == "kill" and self.count == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "full" and self.count == self.moment:
            self.is_full = True
            self.fill()
        self.count += 1
        self.busy.here = False

    def is_below(self, name):
        try:
            return os.path.realpath(os.fsdecode(name)).startswith(self.folder + os.sep)
        except TypeError:  # a descriptor
            return False

    def fill(self):
        """Let every file below the folder that is open to write be /dev/full."""
        full = os.open("/dev/full", os.O_RDWR)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # that of the listing
                name = os.readlink(f"/proc/self/fd/{descriptor}")
                if name.startswith(self.folder + os.sep) and fcntl.fcntl(descriptor, fcntl.F_GETFL) & WRITING:
                    os.dup2(full, descriptor, os.get_inheritable(descriptor))
        os.close(full)


def run(script):
    """Run a script as ``__main__``; returns its exit code."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        return exit.code if isinstance(exit.code, int) else int(bool(exit.code))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(code):
    """End as the interpreter does, but without taking everything that is imported apart, which takes a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    fault = Fault(*sys.argv[1:5])
    begun = time.process_time()
    sys.argv = sys.argv[5:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    code = run(sys.argv[0])
    if fault.kind == "none":
        os.write(fault.trace, f"seconds {time.process_time() - begun}\n".encode())
    end(code)

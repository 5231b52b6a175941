"""SIGTERM in long work: all processes of a job end within seconds, whichever of them receives the signal.

Processes in long work wait for each other at different times, so they cannot agree by a collective operation as
:class:`.sigterm_hook.StopOnSigterm` does between iterations. Each polls torch.distributed's store instead.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch.distributed as dist
from detectron2.utils import comm

from .distributed import any_process
from .lifetime import start_thread
from .signals import Terminated, handled

GRACE = 5.0  # seconds from the signal until a process that has not ended by itself is forced to exit
POLL = 0.5  # seconds between two checks of the signal and of the store
KEY = "loco-det: processes that know of SIGTERM"


@contextlib.contextmanager
def stop_at_once(say: Callable[[], object], code: int) -> Iterator[None]:
    """A context in which SIGTERM to one process of the job ends all of them within seconds.

    A process that cannot leave the context, because it waits for another one or computes outside of Python, is ended
    ``GRACE`` seconds after the signal; with several processes, so is one that has left the context but still runs.
    Results that must not be lost have to be on the disk before.

    Args:
        say: tells the user; called once in every process.
        code: exit code.

    Raises:
        Terminated: after SIGTERM, with ``code``.
    """
    watch = _Watch(say, code)
    ended = False
    try:
        with handled(watch.interrupt, signal.SIGTERM):
            try:
                yield
            finally:
                watch.interrupting = False
            ended = any_process(watch.decide())
    except Terminated:
        ended = True
    except Exception:
        ended = watch.noticed()  # the error is then due to a process that has already ended
        if not ended:
            raise
    finally:
        watch.close(ended)
    if ended:
        raise Terminated(code)


class _Watch:
    """A thread that notices SIGTERM to this or another process, whatever the main thread is doing.

    Attributes:
        interrupting: whether a signal interrupts the main thread.
        pipes: of all threads of this class, the file descriptors to which Python writes the numbers of signals.
    """

    pipes: ClassVar[set[int]] = set()

    def __init__(self, say: Callable[[], object], code: int) -> None:
        self.interrupting = True
        self._say, self._code = say, code
        self._received = self._deciding = self._late = False
        self._noticed, self._announced, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._store = dist.distributed_c10d._get_default_store() if comm.get_world_size() > 1 else None
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self.pipes.add(self._write)
        self._previous = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = start_thread(self._run)

    def interrupt(self, *_: object) -> None:
        """Handle SIGTERM in the main thread, which may be later than the watching thread notices it."""
        self._late |= self._deciding
        self._received |= not self._deciding
        if self.interrupting:
            self.interrupting = False  # a second signal must not interrupt the cleanup
            raise Terminated(self._code)

    def decide(self) -> bool:
        """Whether a signal has come so far; later ones are sent again after :meth:`close`, for the old handler."""
        with self._lock:
            self._deciding = True
            return self._received

    def noticed(self) -> bool:
        """Wait briefly, and return whether this process or another one has received the signal."""
        return self._noticed.wait(3 * POLL if self._store else POLL)

    def close(self, ended: bool) -> None:
        """End the thread.

        If the job ends, the other processes are notified first; with several processes the thread then keeps running,
        to end this one after ``GRACE`` seconds.
        """
        with self._lock:
            self._received |= ended
            if not ended:
                self._closed.set()
        os.write(self._write, b"\0")
        if ended:
            self._announced.wait(GRACE)
            self._closed.set()
        signal.set_wakeup_fd(self._previous)
        if not (ended and self._store):
            self._thread.join()
            self.pipes.discard(self._write)
            os.close(self._write)
            os.close(self._read)
        if self._late and not ended:
            os.kill(os.getpid(), signal.SIGTERM)

    def _run(self) -> None:
        while not self._is_over(self._signalled(), self._others_know()):
            pass
        if not self._received:
            return
        end = time.monotonic() + GRACE
        self._noticed.set()
        self._say()
        self._announce(end)
        self._announced.set()
        if self._closed.wait(max(0.0, end - time.monotonic())) and not self._store:
            return
        time.sleep(max(0.0, end - time.monotonic()))
        os._exit(self._code)

    def _signalled(self) -> bool:
        """Whether SIGTERM comes within ``POLL`` seconds."""
        ready, _, _ = select.select([self._read], [], [], POLL)
        return bool(ready) and signal.SIGTERM in os.read(self._read, 4096)  # a byte for each signal

    def _others_know(self) -> bool:
        with contextlib.suppress(RuntimeError):  # the process that holds the store is gone
            return self._store is not None and self._store.add(KEY, 0) > 0
        return False

    def _is_over(self, signalled: bool, others_know: bool) -> bool:
        with self._lock:
            self._late |= signalled and self._deciding
            self._received |= others_know or signalled and not self._deciding
            if others_know and not signalled and self.interrupting:
                os.kill(os.getpid(), signal.SIGTERM)  # interrupts the main thread
            return self._received or self._closed.is_set()

    def _announce(self, end: float) -> None:
        """Notify the other processes; process 0, which may hold the store, waits until they have read it."""
        if self._store is None:
            return
        with contextlib.suppress(RuntimeError):
            count = self._store.add(KEY, 1)
            while comm.is_main_process() and count < comm.get_world_size() and time.monotonic() < end - 2 * POLL:
                time.sleep(POLL / 5)
                count = self._store.add(KEY, 0)


def _leave_parents_pipe() -> None:
    """In a forked process: do not report its signals to its parent's thread."""
    pipe = signal.set_wakeup_fd(-1)
    if pipe in _Watch.pipes:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    else:
        signal.set_wakeup_fd(pipe)


os.register_at_fork(after_in_child=_leave_parents_pipe)

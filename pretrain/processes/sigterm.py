"""SIGTERM, as clusters send it before they take a machine away: a checkpoint, and an orderly end within seconds.

The processes of a job end together, whichever of them gets the signal. Between two iterations they agree by a
collective operation (:class:`StopOnSigterm`). In long work between iterations, in which they wait for each other at
unequal times, each looks for the news in the store by which they have met (:func:`stop_at_once`).
"""

import contextlib
import functools
import logging
import os
import select
import signal
import threading
import time

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from .lifetime import end_with_parent, start_thread
from .signals import Terminated, handled

logger = logging.getLogger(__name__)
GRACE = 5.0  # seconds from the signal until a process is ended that waits for others or does not come to an end
POLL = 0.5  # seconds between two looks for news of the other processes
KEY = "loco-det: processes that know of SIGTERM"


def any_process(flag):
    """Whether ``flag`` is set in any process; all have to ask at the same moment."""
    if comm.get_world_size() == 1:
        return bool(flag)
    total = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return total.item() > 0


@contextlib.contextmanager
def stop_at_once(say, code):
    """While this context lasts, SIGTERM to one process of the job ends all of them within seconds.

    What is inside is left by :class:`Terminated`. A process that cannot leave it, because it waits for another one or
    computes outside of Python, is ended ``GRACE`` seconds after the signal; and so is, of several processes, one that
    does not end by itself then. Whatever is to last has to be written before.

    Args:
        say: function of no arguments that tells the user, called in every process.
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
        ended = watch.heard()  # then it is of a process that has ended before this one
        if not ended:
            raise
    finally:
        watch.close(ended)
    if ended:
        raise Terminated(code)


class _Watch:
    """A thread that hears of SIGTERM whatever the main thread is doing, and of other processes that have got it.

    Attributes:
        interrupting: whether a signal interrupts what the main thread does.
        pipes: class attribute, the file descriptors by which Python tells such threads the signals that come.
    """

    pipes = set()

    def __init__(self, say, code):
        self.interrupting = True
        self._say, self._code = say, code
        self._received = self._deciding = self._late = False
        self._heard, self._told, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._store = dist.distributed_c10d._get_default_store() if comm.get_world_size() > 1 else None
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self.pipes.add(self._write)
        self._previous = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = start_thread(self._run)

    def interrupt(self, *_):
        """Handle SIGTERM in the main thread, when Python gets to it; the thread may have heard of it before."""
        self._late |= self._deciding
        self._received |= not self._deciding
        if self.interrupting:
            self.interrupting = False  # a second one must not interrupt the putting in order
            raise Terminated(self._code)

    def decide(self):
        """Whether a signal has come until now; later ones are for those who handle it after :meth:`close`."""
        with self._lock:
            self._deciding = True
            return self._received

    def heard(self):
        """Whether this process has got the signal, or is told by another one in the time that this takes."""
        return self._heard.wait(3 * POLL if self._store else POLL)

    def close(self, ended):
        """End the thread; if the job ends, not before the other processes are told. Of several, it goes on then."""
        with self._lock:
            self._received |= ended
            if not ended:
                self._closed.set()
        os.write(self._write, b"\0")
        if ended:
            self._told.wait(GRACE)
            self._closed.set()
        signal.set_wakeup_fd(self._previous)
        if not (ended and self._store):
            self._thread.join()
            self.pipes.discard(self._write)
            os.close(self._write)
            os.close(self._read)
        if self._late and not ended:
            os.kill(os.getpid(), signal.SIGTERM)

    def _run(self):
        while not self._is_over(self._signalled(), self._others_know()):
            pass
        if not self._received:
            return
        end = time.monotonic() + GRACE
        self._heard.set()
        self._say()
        self._tell(end)
        self._told.set()
        while time.monotonic() < end:
            if self._closed.wait(POLL) and not self._store:
                return
        os._exit(self._code)

    def _signalled(self):
        ready, _, _ = select.select([self._read], [], [], POLL)
        return bool(ready) and signal.SIGTERM in os.read(self._read, 4096)  # numbers of all signals that are handled

    def _others_know(self):
        with contextlib.suppress(RuntimeError):  # the process that has the store is gone
            return self._store is not None and self._store.add(KEY, 0) > 0

    def _is_over(self, signalled, told):
        with self._lock:
            self._late |= signalled and self._deciding
            self._received |= bool(told) or signalled and not self._deciding
            if told and not signalled and self.interrupting:
                os.kill(os.getpid(), signal.SIGTERM)  # for the main thread
            return self._received or self._closed.is_set()

    def _tell(self, end):
        """Tell the other processes; the first one, which may have the store, waits until they have read it."""
        if self._store is None:
            return
        with contextlib.suppress(RuntimeError):
            count = self._store.add(KEY, 1)
            while comm.is_main_process() and count < comm.get_world_size() and time.monotonic() < end - 2 * POLL:
                time.sleep(POLL / 5)
                count = self._store.add(KEY, 0)


def _leave_parents_pipe():
    """Of a forked process: what it is sent is not for the thread of its parent."""
    pipe = signal.set_wakeup_fd(-1)
    if pipe in _Watch.pipes:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    else:
        signal.set_wakeup_fd(pipe)


os.register_at_fork(after_in_child=_leave_parents_pipe)


class StopOnSigterm(HookBase):
    """Ends a training after SIGTERM with a checkpoint and exit code 0: after the iteration at hand, or in long work
    that follows it, at once.

    It has to come before the hooks that do long work, which do it inside :meth:`at_once`.

    Attributes:
        ended: whether long work was left because of SIGTERM: no other is to be begun.
    """

    def __init__(self, checkpoint_period=None):
        """
        Args:
            checkpoint_period: iterations between the checkpoints that are there to stay: one that is written before
                long work only is removed when there is a newer one. None: the checkpointer removes old ones itself.
        """
        self.period = checkpoint_period
        self.received = self.ended = False
        self.temporary = None  # a checkpoint of before long work

    def _receive(self, *_):
        self.received = True

    def before_train(self):
        self.previous = signal.signal(signal.SIGTERM, self._receive)

    def after_step(self):
        self._remove_temporary()
        iteration = self.trainer.iter
        if iteration + 1 < self.trainer.max_iter and any_process(self.received):  # else its checkpoint comes anyway
            if comm.is_main_process():
                self.trainer.checkpointer.save(_name(iteration), iteration=iteration)
            self._say(iteration)
            raise Terminated(0)

    def after_train(self):
        self._remove_temporary()
        signal.signal(signal.SIGTERM, self.previous)

    @contextlib.contextmanager
    def at_once(self):
        """A context for long work between iterations: there is a checkpoint of the latest one, or it is written, before
        the work begins, so that SIGTERM can end it at once.

        Raises:
            Terminated: after SIGTERM, with exit code 0.
        """
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        if comm.is_main_process():
            self._save(iteration)
        try:
            with stop_at_once(functools.partial(self._say, iteration), 0):
                if any_process(self.received):
                    raise Terminated(0)
                yield
        except Terminated:
            self.ended = True
            raise

    def _save(self, iteration):
        checkpointer, last = self.trainer.checkpointer, iteration + 1 == self.trainer.max_iter
        if self._newest() in (f"{_name(iteration)}.pth", "model_final.pth" if last else None):
            return
        checkpointer.save(_name(iteration), iteration=iteration)
        self._remove_temporary()
        if self.period and (iteration + 1) % self.period:
            self.temporary = checkpointer.get_checkpoint_file()

    def _newest(self):
        return os.path.basename(self.trainer.checkpointer.get_checkpoint_file())

    def _remove_temporary(self):
        if self.temporary and self._newest() != os.path.basename(self.temporary):
            with contextlib.suppress(FileNotFoundError):  # checkpointers remove old ones, too
                os.remove(self.temporary)
            self.temporary = None

    @staticmethod
    def _say(iteration):
        logger.info(f"SIGTERM: checkpoint written after iteration {iteration}; go on with --resume")


def _name(iteration):
    return f"model_{iteration:07d}"


def start_worker(*_):
    """What a worker of a loader does first: see that it ends with its parent, and on its SIGTERM only. One that is sent
    to all processes of a job finds the parent in need of a batch to finish the iteration."""
    end_with_parent()
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not say who has sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_parent():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    start_thread(wait_for_parent)

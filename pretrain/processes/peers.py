"""The end of one process ends all others within seconds, with one line that names it.

A process that waits for a message of another one that has ended would wait for minutes: with NCCL always, with gloo
if the two exchange nothing themselves. So each process counts up a number in torch.distributed's store, and looks at
those of the others.
"""

import contextlib
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import torch.distributed as dist

from .lifetime import start_thread
from .signals import Terminated

POLL = 1.0  # seconds between two looks at the store
SILENT = 12.0  # seconds after which a process that does not count has ended
GRACE = 4.0  # seconds in which a process may end by itself
DONE = 1 << 40  # what a process that has ended well adds to its number
LOST = re.compile("connection (closed|reset)|connectionreset|broken pipe|remote process exited", re.I)
FAILURE, BEAT = "loco-det: what has failed", "loco-det: beats of process"
_runs = itertools.count()  # the keys of a later run among the same processes are others


class PeerLostError(RuntimeError):
    """Another process has ended, or has failed."""


class Peers:
    """Watches the other processes of a run, while this one is in the context :meth:`watched`."""

    def __init__(self, names: Sequence[str]) -> None:
        """
        Args:
            names: of all processes by rank, such as "process 1 (res4, res5)".
        """
        self.names, self.rank = list(names), dist.get_rank()
        self._store = dist.distributed_c10d._get_default_store()
        self._over = threading.Event()
        run = next(_runs)
        self._failure_key, self._beat_key = f"{FAILURE} {run}", f"{BEAT} {run}"

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A context in which this process ends soon after another one has failed or ended.

        If it cannot end by itself, because it waits for a message, it is ended with a line on stderr and exit code 1.
        An error of this process is told to the others. They enter and leave the context together.

        Raises:
            PeerLostError: if another one has ended.
        """
        self._over.clear()
        thread = start_thread(self._run)
        try:
            yield
        except (Terminated, PeerLostError):
            raise
        except BaseException as error:
            if isinstance(error, RuntimeError) and LOST.search(str(error)):  # in a collective operation
                raise PeerLostError(self._wait_for_failure(SILENT + 3 * POLL) or str(error)) from error
            text = " ".join(f"{error}".split()) or type(error).__name__
            self._note(f"{self.names[self.rank]} has failed: {text}")
            raise
        finally:
            self._over.set()
            thread.join()
            with contextlib.suppress(RuntimeError):
                self._store.add(f"{self._beat_key} {self.rank}", DONE)

    def lost(self, peer: int, error: RuntimeError) -> PeerLostError:
        """What is raised when the connection to a process is lost: the first failure that any process has noted.

        Args:
            peer: its rank.
            error: what torch says.
        """
        failure = self._wait_for_failure(2 * POLL)  # the process that knows why may be writing it now
        return PeerLostError(failure or self._note(self._ended(peer)))

    def _wait_for_failure(self, seconds: float) -> str | None:
        end = time.monotonic() + seconds
        failure = self._failure()
        while failure is None and time.monotonic() < end:
            time.sleep(POLL / 10)
            failure = self._failure()
        return failure

    def _ended(self, peer: int) -> str:
        return f"{self.names[peer]} has ended; go on with --resume"

    def _note(self, text: str) -> str:
        """Tell all processes what has failed; the first text counts, and is returned."""
        with contextlib.suppress(RuntimeError):
            return self._store.compare_set(self._failure_key, "", text).decode()
        return text

    def _failure(self) -> str | None:
        """What has failed, if that is noted; also if process 0 is gone, which may hold the store."""
        try:
            return self._store.get(self._failure_key).decode() if self._store.check([self._failure_key]) else None
        except RuntimeError:
            return self._ended(0)

    def _run(self) -> None:
        seen = {rank: (0, time.monotonic()) for rank in range(len(self.names)) if rank != self.rank}
        while not self._over.wait(POLL):
            failure = self._failure() or self._silent(seen)
            if failure:
                if not self._over.wait(GRACE):
                    print(f"process {self.rank}: error: {failure}", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def _silent(self, seen: dict[int, tuple[int, float]]) -> str | None:
        """Count up this process's number, and look at the others'; the failure of one that has stopped to count."""
        try:
            self._store.add(f"{self._beat_key} {self.rank}", 1)
            for rank, (before, since) in seen.items():
                beats, now = self._store.add(f"{self._beat_key} {rank}", 0), time.monotonic()
                if beats != before:
                    seen[rank] = beats, now
                elif now - since > SILENT and beats < DONE:
                    return self._note(self._ended(rank))
        except RuntimeError:
            return self._ended(0)
        return None

"""A pool of processes that leaves none behind, whatever signal ends the process that started it."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import cv2

from pretrain.processes.lifetime import end_with_parent

ENDING = (signal.SIGTERM, signal.SIGHUP)  # signals that end the work in good order


@contextmanager
def parallel_map(workers: int) -> Iterator[Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]]:
    """Give a ``map(function, items)`` that works in several processes, or in this one if ``workers`` is 1.

    The processes are spawned: forked ones hang if this process has already used OpenCV's threads.

    Args:
        workers: number of processes. With more than one, ``function`` and the items have to be picklable.

    Yields:
        The map; its results are in the order of the items.
    """
    if workers == 1:
        yield map
        return
    with _blocked_signals():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)

    def run(function, items):
        with _blocked_signals():
            return pool.map(function, items, chunksize=4)

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, jobs that have not started are dropped


@contextmanager
def _blocked_signals():
    """Workers inherit the mask: signals that end this process are blocked in them, and this process stops them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDING})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_worker():
    end_with_parent()
    cv2.setNumThreads(1)

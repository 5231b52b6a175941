"""Data loaders whose workers end with their parent, and whose death is said by name."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from .lifetime import start_worker

PATIENCE = 5.0  # seconds until the kernel reports the death of a worker whose sockets are closed already


class Loader(DataLoader):
    """torch's DataLoader; its workers start by :func:`.lifetime.start_worker`.

    A worker that is killed closes its sockets before its parent hears of its death. In between torch finds a
    connection that was reset, and a worker that seems to live; it then raises the ConnectionError, which says nothing.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Arguments as of torch's class."""
        super().__init__(*args, **options)
        self.worker_init_fn = functools.partial(_start, self.worker_init_fn)

    @classmethod
    def adopt(cls, loader: Any) -> Any:
        """Make a loader that Detectron2 has built one of this class.

        Args:
            loader: a DataLoader, or Detectron2's AspectRatioGroupedDataset of one; not iterated yet. Changed in place.

        Returns:
            The same loader.
        """
        inner = loader if isinstance(loader, DataLoader) else loader.dataset
        inner.worker_init_fn = functools.partial(_start, inner.worker_init_fn)
        inner.__class__ = cls
        return loader

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """
        Returns:
            An iterator of batches, which raises RuntimeError ("DataLoader worker (pid N) ...") if a worker has died.
        """
        return _patient(super().__iter__())


def _patient(batches):
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError):
            time.sleep(PATIENCE)  # until SIGCHLD, whose handler is torch's: it raises what has happened
            raise
        yield batch


def _start(seed: Callable[[int], object] | None, worker: int) -> None:
    start_worker()
    if seed:
        seed(worker)

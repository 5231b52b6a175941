"""Data loaders whose workers end with their parent, and whose death is said by name."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

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
    def of(cls, loader: DataLoader) -> "Loader":
        """A loader of this class with the batches of another one, such as Detectron2 builds.

        Args:
            loader: not iterated yet.
        """
        batches: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
        if isinstance(loader.dataset, IterableDataset):
            batches = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        same = ("num_workers", "collate_fn", "pin_memory", "worker_init_fn", "generator", "prefetch_factor")
        return cls(loader.dataset, **batches, **{name: getattr(loader, name) for name in same})

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

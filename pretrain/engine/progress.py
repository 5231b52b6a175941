"""Progress of a pass over images."""

import logging
import time
from collections.abc import Iterator
from datetime import timedelta

from torch.utils.data import DataLoader
from tqdm import tqdm

logger = logging.getLogger(__name__)
FIRST = 5  # seconds until the first line in the log; the time between lines doubles, up to a minute


def with_progress(loader: DataLoader, images: int, what: str, silent: bool = False) -> Iterator:
    """Iterate over the batches of a loader with progress and ETA: a bar on a terminal, otherwise lines in the log.

    Args:
        loader: with a length.
        images: number of images in all batches.
        what: is computed, such as "pooled features".
        silent: show nothing, as in all processes but process 0.

    Yields:
        The loader's batches.
    """
    bar = tqdm(loader, what, unit="batch", leave=False, disable=silent or None)  # None: without a terminal
    start = time.perf_counter()
    due: float = FIRST
    for done, batch in enumerate(bar, 1):
        yield batch  # it is processed when the next line runs
        seconds = time.perf_counter() - start
        if bar.disable and not silent and seconds >= due and done < len(loader):
            eta = timedelta(seconds=round(seconds / done * (len(loader) - done)))
            logger.info(f"{what}: {images * done // len(loader)} of {images} images, eta: {eta}")
            due = seconds + min(60, seconds)

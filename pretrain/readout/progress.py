"""How far a pass over images has come."""

import logging
import time
from datetime import timedelta

from tqdm import tqdm

logger = logging.getLogger(__name__)
FIRST = 5  # seconds after which there is a line in the log; the further ones come ever later, a minute apart at most


def with_progress(loader, images, what, silent=False):
    """The batches of a loader, with their progress and ETA: a bar on a terminal, else lines in the log.

    Args:
        loader: with a length.
        images: that it stands for in all.
        what: is computed of them, in a word or two.
        silent: neither, as in other processes than the first.

    Yields:
        What the loader does.
    """
    bar = tqdm(loader, what, unit="batch", leave=False, disable=silent or None)  # None: if there is no terminal
    start, due = time.perf_counter(), FIRST
    for done, batch in enumerate(bar, 1):
        yield batch  # and whoever gets it is done with it before the next line
        seconds = time.perf_counter() - start
        if bar.disable and not silent and seconds >= due and done < len(loader):
            eta = timedelta(seconds=round(seconds / done * (len(loader) - done)))
            logger.info(f"{what}: {images * done // len(loader)} of {images} images, eta: {eta}")
            due = seconds + min(60, seconds)

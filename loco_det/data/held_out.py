"""A held-out part of the training images, for choices such as the learning rate, which the test set must not make.

The images are drawn by hash, as the low-shot sets are (:mod:`.low_shot`): the same ones on any machine and in any order
of the annotations. All checkpoints, learning rates and seeds share one draw.
"""

import functools
import logging
from collections.abc import Sequence

from detectron2.data import DatasetCatalog

from .low_shot import checksum, draw
from .subsets import register_subset

logger = logging.getLogger(__name__)
FIT, HELD_OUT = "_fit", "_held_out"  # endings of the names of the two parts


def hold_out(names: Sequence[str], percent: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Register both parts of training sets. The held-out part is evaluated by COCO's AP, whatever the data are.

    Args:
        names: registered data sets; a part's name stands for the whole set.
        percent: of each set's images that are held out, rounded down to whole images.

    Returns:
        Names of the parts to train on, and of the held-out parts.

    Raises:
        ValueError: if a part would be empty.
    """
    names = [name.removesuffix(FIT) for name in names]
    for name in names:
        if name + FIT not in DatasetCatalog.list():
            _register(name, percent)
    return tuple(name + FIT for name in names), tuple(name + HELD_OUT for name in names)


def _register(name, percent):
    records = DatasetCatalog.get(name)
    ids = [record["image_id"] for record in records]
    try:
        held_out = set(draw(ids, f"{percent}%", 0))
    except ValueError as error:
        raise ValueError(f"DATASETS.HELD_OUT: data set {name}: {error}") from None
    if len(held_out) == len(ids):
        raise ValueError(f"DATASETS.HELD_OUT {percent}: no image of data set {name} is left to train on")
    parts = {FIT: [], HELD_OUT: []}
    for record in records:
        parts[HELD_OUT if record["image_id"] in held_out else FIT].append(record)
    for ending, part in parts.items():
        register_subset(name + ending, name, functools.partial(list, part), is_evaluated=True)
    sums = checksum(sorted(held_out))
    logger.info(f"{name}: {len(held_out)} of {len(ids)} images are held out, SHA-256 of the ids {sums}")

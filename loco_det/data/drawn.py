"""Subsets of any registered data sets, for budgets of minutes."""

import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog

from .low_shot import checksum, draw
from .subsets import register_subset

logger = logging.getLogger(__name__)
ENDING = re.compile(r"_drawn\d+$")


def draw_images(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Register subsets of data sets, drawn by hash as the low-shot sets are: the same images on any machine.

    A subset is evaluated by COCO's AP, whatever the data are.

    Args:
        names: registered data sets.
        count: most images of a set; 0: all.

    Returns:
        Names of the subsets, ``NAME_drawnCOUNT``; a set that has no more images keeps its name.

    Raises:
        ValueError: if the number is negative, or two images have one id.
    """
    if count < 0:
        raise ValueError(f"MODEL.LIGHT_HEAD: {count} images cannot be drawn: name a number, or 0 for all")
    return tuple(_register(name, count) for name in names) if count else tuple(names)


def undrawn(names: Sequence[str]) -> tuple[str, ...]:
    """Names of data sets, each in place of its subset's: a run's config.yaml names the latter."""
    return tuple(ENDING.sub("", name) for name in names)


def _register(name: str, count: int) -> str:
    records: list[dict[str, Any]] = DatasetCatalog.get(name)
    if len(records) <= count:
        return name
    ids = set(draw({record["image_id"] for record in records}, count, 0))
    drawn = [record for record in records if record["image_id"] in ids]
    if len(drawn) != count:
        raise ValueError(f"data set {name}: two images have the same id")
    subset = f"{name}_drawn{count}"
    if subset not in DatasetCatalog.list():
        register_subset(subset, name, functools.partial(list, drawn), is_evaluated=True)
        sums = checksum(sorted(ids))
        logger.info(f"{name}: {count} of {len(records)} images are used, SHA-256 of the ids {sums}")
    return subset

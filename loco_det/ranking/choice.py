"""The learning rate of a row: the one of the grid with the highest AP on held-out training images."""

import math
from collections.abc import Iterable
from pathlib import Path

from pretrain.files.results import DetectionResults

FAILED = "failed.txt"  # beside a run whose loss exploded: its last line


def folder_of(rate: float) -> str:
    """Name of the folder of a run that is there to choose a rate."""
    return f"lr{rate:g}"


def held_out_aps(folder: Path, rates: Iterable[float]) -> dict[float, float | None]:
    """Rate -> box AP on the held-out images in percent, of the runs that have come to their end.

    Args:
        folder: of the row's runs that are there to choose, ``ROW/PROTOCOL/choice``.
        rates: the grid.

    Returns:
        Also None: the run's loss exploded, or it has no AP.

    Raises:
        ValueError: if a results.json is damaged.
    """
    found: dict[float, float | None] = {}
    for rate in rates:
        run = folder / folder_of(rate)
        if (run / "results.json").exists():
            tasks = next(iter(DetectionResults.read(run / "results.json").evaluations().values()), {})
            ap = tasks.get("bbox", {}).get("AP")
            found[rate] = ap if ap is not None and math.isfinite(ap) else None
        elif (run / FAILED).exists():
            found[rate] = None
    return found


def chosen_rate(folder: Path, rates: list[float]) -> float | None:
    """The rate of the highest box AP on the held-out images, of equal ones the lowest.

    Args:
        folder, rates: as in :func:`held_out_aps`; a grid of one rate is that rate.

    Returns:
        None while runs of the grid are missing.

    Raises:
        ValueError: if no rate has an AP, or a results.json is damaged.
    """
    if len(rates) == 1:
        return rates[0]
    found = held_out_aps(folder, rates)
    if len(found) < len(rates):
        return None
    aps = {rate: ap for rate, ap in sorted(found.items()) if ap is not None}
    if not aps:
        grid = ", ".join(f"{rate:g}" for rate in rates)
        if all((folder / folder_of(rate) / FAILED).exists() for rate in rates):
            raise ValueError(f"{folder}: the loss exploded at every learning rate of {grid}: give lower ones, --lrs")
        raise ValueError(
            f"{folder}: no learning rate of {grid} has an AP on the held-out images, which may have no object: give a "
            "single one, --lrs"
        )
    return max(aps, key=lambda rate: aps[rate])

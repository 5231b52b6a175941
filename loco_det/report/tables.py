"""What the tables of runs have in common: the APs, and the looks of their columns."""

import math

from pretrain.files.results.detection import Tasks
from pretrain.files.tables import Column, Format, decimals

PERCENT = decimals(1)
DIFFERENCE = decimals(1, sign=True)
# Column -> task and metric in results.json
APS = {
    f"{name} {metric}": (task, metric)
    for name, task in (("box", "bbox"), ("mask", "segm"))
    for metric in ("AP", "AP50", "AP75")
}


def finite(value: float | None) -> float:
    """A number as it is, NaN for the None that stands for it in JSON."""
    return math.nan if value is None else value


def ap(tasks: Tasks, task: str, key: str) -> float | None:
    """In percent; None where it was not evaluated or had no objects."""
    return tasks.get(task, {}).get(key)


def minus(value: float | None, other: float | None) -> float | None:
    """The difference; None if one of the two is not known."""
    return None if value is None or other is None else value - other


def number(name: str, form: Format) -> Column:
    """A column of numbers."""
    return Column(name, form, style="number")


def ap_column(name: str) -> Column:
    """A column of an AP in percent: the AP itself stands out from those at one IoU."""
    return Column(name, PERCENT, style="ap" if name.endswith("AP") else "number")


def names(name: str) -> Column:
    """A column of names that may be long and then break where their words end."""
    return Column(name, style="name")


def wrapped(name: str) -> Column:
    """A column of texts that may break anywhere."""
    return Column(name, style="wrap")

"""What the tables of runs have in common: the APs, and the looks of their columns."""

import math
from collections.abc import Collection

from pretrain.files.results.detection import Tasks
from pretrain.files.tables import NOTHING, Column, Format, Table, decimals

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


def without_equal(table: Table, names: Collection[str], known: bool = False) -> tuple[Table, list[tuple[str, str]]]:
    """A table without columns that say the same in all rows.

    Args:
        table: of any number of rows; one of a single row is left as it is.
        names: of the columns that are looked at.
        known: whether only rows count in which the column says something.

    Returns:
        The table, and name and text of each column that was left out; what no row says is not named.
    """
    if len(table.rows) < 2:
        return table, []
    said: dict[str, str] = {}
    for column in (column for column in table.columns if column.name in names):
        texts = {column.text(column.value(row)) for row in table.rows}
        texts = texts - {NOTHING} or texts if known else texts
        if len(texts) == 1:
            said[column.name] = texts.pop()
    return table.without(said), [(name, text) for name, text in said.items() if text != NOTHING]

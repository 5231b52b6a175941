"""Tables hold numbers until they are rendered: for a terminal, as Markdown, and cell by cell for a page of HTML."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tabulate import tabulate

from .text import for_markdown, for_terminal, shortened

NOTHING = "–"  # what is not known, was not evaluated, or does not apply
LONGEST = 100  # characters of a cell on a terminal
_BARE_PIPE = re.compile(r"(?<!\\)\|")  # in a code span; elsewhere it is escaped already


class Markdown(str):
    """Text that is Markdown already, the names in it escaped."""


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation (of a sample).

    Attributes:
        signed: whether the mean has its + before it, as differences have.
    """

    mean: float
    std: float
    signed: bool = False


@dataclass(frozen=True)
class MeanHalf:
    """Mean, and half the width of its 95 % interval.

    Attributes:
        signed: as of :class:`MeanStd`.
    """

    mean: float
    half: float
    signed: bool = False


@dataclass(frozen=True)
class Progress:
    """A count, and what it is to become; None: it is not known, or reached."""

    done: int
    planned: int | None = None


@dataclass(frozen=True)
class Format:
    """How the values of a column are written.

    Attributes:
        text: function from a value to its text.
        right: whether the column is aligned to the right, as numbers are.
    """

    text: Callable[[Any], str]
    right: bool = True


TEXT = Format(str, right=False)
GENERAL = Format(lambda value: f"{value:g}")  # learning rates, temperatures
COUNT = Format(lambda value: f"{value:,}")  # with separators of thousands
PLAIN = Format(str)  # integers without


def decimals(digits: int, sign: bool = False) -> Format:
    """Numbers, also as a mean ± its deviation or interval, of so many decimals; with ``sign`` also + before them."""

    def text(value: float | MeanStd | MeanHalf) -> str:
        if isinstance(value, MeanStd | MeanHalf):
            spread = value.std if isinstance(value, MeanStd) else value.half
            return f"{value.mean:{'+' if value.signed else ''}.{digits}f} ± {spread:.{digits}f}"
        return f"{value:{'+' if sign else ''}.{digits}f}"

    return Format(text)


def _progress(value: Progress) -> str:
    unfinished = value.planned and value.done < value.planned
    return f"{value.done} of {value.planned}" if unfinished else str(value.done)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    text = f"{whole} s" if whole < 60 else f"{minutes} min {rest:02d} s"
    return text if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


PROGRESS = Format(_progress)
DURATION = Format(_duration)  # of seconds
MEMORY = Format(lambda peak: f"{peak / 1e9:.1f} GB")  # of bytes


def several(each: Format) -> Format:
    """Some values in one cell."""
    return Format(lambda values: " / ".join(NOTHING if unknown(v) else each.text(v) for v in values))


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: its head; a name is data and may hold anything.
        format: of its values.
        style: class of its cells in HTML.
        key: of its values in the rows; "": its name.
    """

    name: str
    format: Format = TEXT
    style: str = ""
    key: str = ""

    def value(self, row: dict[str, Any]) -> Any:
        """The column's value in a row; None if there is none."""
        return row.get(self.key or self.name)

    def text(self, value: Any) -> str:
        """A value's text, not escaped; text in a column of numbers, such as "all diverged", is written as it is."""
        return NOTHING if unknown(value) else value if isinstance(value, str) else self.format.text(value)


@dataclass
class Table:
    """Columns and rows.

    Attributes:
        columns: list of :class:`Column`.
        rows: dicts, key of a column -> value; None, NaN or no value is :data:`NOTHING`.
    """

    columns: list[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def cells(self, row: dict[str, Any]) -> Iterator[tuple[Column, Any]]:
        """The columns with a row's values."""
        return ((column, column.value(row)) for column in self.columns)

    def texts(self) -> list[dict[str, str]]:
        """The rows as text, not escaped: name of a column -> text."""
        return [{column.name: column.text(value) for column, value in self.cells(row)} for row in self.rows]

    def without(self, names: Iterable[str]) -> "Table":
        """The table without some columns."""
        left_out = set(names)
        return replace(self, columns=[column for column in self.columns if column.name not in left_out])

    def without_empty(self, names: Iterable[str] | None = None) -> "Table":
        """The table without those columns that have nothing in any row; ``names``: only these are looked at."""
        shown = [
            column
            for column in self.columns
            if (names is not None and column.name not in names)
            or not all(unknown(column.value(row)) for row in self.rows)
        ]
        return replace(self, columns=shown)

    def markdown(self) -> str:
        """The table as Markdown, columns aligned."""
        return self._render(_for_markdown)

    def terminal(self) -> str:
        """The table for a terminal: as Markdown, but names are not escaped for it, and long ones are shortened."""
        return self._render(lambda text: shortened(for_terminal(text).replace("|", "\\|"), LONGEST))

    def _render(self, escape: Callable[[str], str]) -> str:
        rows = [[escape(column.text(value)) for column, value in self.cells(row)] for row in self.rows]
        align = ["right" if column.format.right else "left" for column in self.columns]
        heads = [escape(column.name) for column in self.columns]
        return tabulate(rows, heads, tablefmt="pipe", colalign=align, disable_numparse=True)


def unknown(value: Any) -> bool:
    """Whether nothing is known: None, NaN or infinite."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def csv_cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a CSV file: numbers as they are, texts in one line with control characters spelled out."""
    return {name: for_terminal(value) if isinstance(value, str) else value for name, value in row.items()}


def sort_key(value: Any) -> float | None:
    """The number by which a cell is sorted; None: by its text."""
    value = (
        value.mean if isinstance(value, MeanStd | MeanHalf) else value.done if isinstance(value, Progress) else value
    )
    return None if unknown(value) or not isinstance(value, int | float) else float(value)


def _for_markdown(text: str) -> str:
    return _BARE_PIPE.sub(r"\|", text) if isinstance(text, Markdown) else for_markdown(text)

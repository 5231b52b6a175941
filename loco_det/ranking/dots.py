"""A ranking as dots with intervals on an axis that begins at 0: where everything lies, in percent of the axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .comparisons import Entry
from .evaluation import Row

STEPS = (1, 2, 2.5, 5, 10)  # of an axis, times a power of ten
TICKS = 5  # at most, above 0
LEAST = 1.0  # AP at the end of an axis, also where all is near 0
ROOM = 2.0  # intervals may stretch the axis to that many times the largest figure; beyond it they are cut


@dataclass(frozen=True)
class Dot:
    """A row on an axis; places are percent of its length.

    Attributes:
        row: the row.
        text: its figure, or why it has none.
        x: place of the mean; None: there is no figure.
        low, high: ends of the interval; None of a single seed.
        seeds: places of the seeds.
        published: place of the published figure; None: there is none.
        title: all in words, for those who do not see it.
    """

    row: Row
    text: str
    x: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: list[float] = field(default_factory=list)
    published: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Axis:
    """From 0 to ``end``.

    Attributes:
        end: AP in percent.
        ticks: place and label of each.
    """

    end: float
    ticks: list[tuple[float, str]]

    def place(self, value: float) -> float:
        """Percent of the axis, within it."""
        return round(100 * min(max(value, 0.0), self.end) / self.end, 2)


def axis_of(entries: Sequence[Entry]) -> Axis:
    """The axis that all entries of a page share, so that frozen and fine-tuned can be compared by eye."""
    figures = [value for entry in entries for value in (*entry.values.values(), entry.published or 0.0)]
    largest = max([*figures, LEAST])
    ends = [entry.mean + (entry.half or 0.0) for entry in entries]
    reach = min(max([largest, *ends]), ROOM * largest)
    power = 10.0 ** math.floor(math.log10(reach / TICKS))
    step = next(size * power for size in STEPS if size * power * TICKS >= reach * (1 - 1e-9))
    count = math.ceil(reach / step - 1e-9)
    return Axis(count * step, [(100 * i / count, f"{i * step:g}") for i in range(count + 1)])


def dot(entry: Entry, axis: Axis, metric: str) -> Dot:
    """The dot of a row's figure."""
    mean, half = entry.mean, entry.half
    text = f"{mean:.1f}" + ("" if half is None else f" ± {half:.1f}")
    title = f"{entry.row.name}: {text} {metric}, seeds: {', '.join(f'{value:.1f}' for value in entry.values.values())}"
    title += "" if entry.published is None else f"; published: {entry.published:g}"
    return Dot(
        row=entry.row,
        text=text,
        x=axis.place(mean),
        low=None if half is None else axis.place(mean - half),
        high=None if half is None else axis.place(mean + half),
        seeds=[axis.place(value) for value in entry.values.values()] if len(entry.values) > 1 else [],
        published=None if entry.published is None else axis.place(entry.published),
        title=title,
    )

"""The few forms of Markdown that the card has. Cells and sentences are Markdown: names in them are escaped before."""

import re

from ..files.tables import Column, Markdown, Table
from ..files.text import for_terminal


def percent(value: float | None) -> str:
    """Text of a figure in percent; a dash for None."""
    return "–" if value is None else f"{value:.1f}"


def count(number: int, noun: str, plural: str = "s") -> str:
    """A number and its noun."""
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def code(language: str, text: str) -> str:
    """A block of code, whatever is in it."""
    text = for_terminal(text.strip(), lines=True)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def pairs(rows: list[tuple[str, str]]) -> str:
    """Pairs of texts, the second of which is Markdown, as a table without a head."""
    return Table(
        [Column("", key="what"), Column("", key="text")],
        [{"what": what, "text": Markdown(text)} for what, text in rows],
    ).markdown()

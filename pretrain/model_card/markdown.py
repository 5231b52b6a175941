"""The few forms of Markdown that the card has. Cells and sentences are Markdown: names in them are escaped before."""

import re

from ..files.text import for_terminal


def percent(value):
    """Text of a figure in percent; a dash for None."""
    return "–" if value is None else f"{value:.1f}"


def count(number, noun, plural="s"):
    """A number and its noun."""
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def code(language, text):
    """A block of code, whatever is in it."""
    text = for_terminal(text.strip(), lines=True)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def pairs(rows):
    """Pairs of texts as a table without a head."""
    return table([{"": key, " ": text} for key, text in rows])


def table(rows):
    """Rows (column -> text) as a table, without the columns in which every cell is a dash."""
    columns = [column for column in rows[0] if any(row[column] != "–" for row in rows)]
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    bare = re.compile(r"(?<!\\)\|")  # in a code span; elsewhere it is escaped already
    return "\n".join("| " + " | ".join(bare.sub(r"\|", cell) for cell in line) + " |" for line in lines)

"""The few forms of Markdown that the card has."""


def percent(value):
    """Text of a figure in percent; a dash for None."""
    return "–" if value is None else f"{value:.1f}"


def count(number, noun, plural="s"):
    """A number and its noun."""
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def code(language, text):
    """A block of code."""
    return f"```{language}\n{text.strip()}\n```"


def pairs(rows):
    """Pairs of texts as a table without a head."""
    return table([{"": key, " ": text} for key, text in rows])


def table(rows):
    """Rows (column -> text) as a table, without the columns in which every cell is a dash."""
    columns = [column for column in rows[0] if any(row[column] != "–" for row in rows)]
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

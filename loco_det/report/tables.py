"""Rows of runs as text, and what stands in their cells."""

import math

from pretrain.files.text import for_markdown, for_terminal, shortened

NOTHING = "–"
LONGEST = 100  # characters of a cell on a terminal
# Column -> task and metric in results.json
APS = {
    f"{name} {metric}": (task, metric)
    for name, task in (("box", "bbox"), ("mask", "segm"))
    for metric in ("AP", "AP50", "AP75")
}
# And whatever has to do with AP
RIGHT = ("iterations", "time", "memory", "objects", "top-1", "top-5", "learning rate", "k", "temperature")


class Cell(str):
    """Text of a cell that sorts by a number."""

    def __new__(cls, text, value):
        cell = super().__new__(cls, text)
        cell.value = value
        return cell


def finite(value):
    """A number as it is, NaN for the None that stands for it in JSON."""
    return math.nan if value is None else value


def ap(tasks, task, key):
    """In percent; NaN where it was not evaluated or had no objects."""
    return finite(tasks.get(task, {}).get(key))


def one_decimal(value, sign=""):
    return Cell(f"{value:{sign}.1f}", value) if math.isfinite(value) else NOTHING


def duration(seconds):
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    text = f"{whole} s" if whole < 60 else f"{minutes} min {rest:02d} s"
    return Cell(text if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min", seconds)


def memory(peak):
    return NOTHING if peak is None else Cell(f"{peak / 1e9:.1f} GB", peak)


def decoder_name(run):
    """The decoder that a pretraining run looked through; published comparisons were unfair for not saying it.

    Returns:
        str, or None for a run without decoder: the random control, and detection runs.
    """
    keys = run.key("MODEL.DECODER")
    if not keys or "CONV_BLOCKS" not in keys or run.key("MODEL.UNITS") == []:  # no unit, no loss: the random control
        return None
    blocks, copies = keys["CONV_BLOCKS"], keys.get("STAGES", 0)
    parts = []
    if copies:
        which = "the next stage" if copies == 1 else f"the next {copies} stages" if copies > 0 else "all stages above"
        parts.append(f"copy of {which}{', tied ' + str(keys['TIE']) if keys.get('TIE') else ''}")
    conv = f"{blocks} conv block{'s' * (blocks != 1)}{', downsampling' if keys.get('DOWNSAMPLE') else ''}"
    parts.append(conv if blocks else "no conv block")
    if keys.get("EXPANSION"):
        parts.append(f"1x1 conv {keys['EXPANSION']}")
    widths = [keys.get("HIDDEN_DIM")] * ((keys.get("MLP_LAYERS") or 2) - 1) + [keys.get("OUT_DIM")]
    return ", ".join([*parts, "MLP " + "-".join(map(str, widths))])


def without_empty(rows, columns):
    """The rows without those of the columns in which no row has anything."""
    empty = {column for column in columns if all(row.get(column, NOTHING) == NOTHING for row in rows)}
    return [{column: cell for column, cell in row.items() if column not in empty} for row in rows]


def is_number(column):
    return "AP" in column or column in RIGHT


def markdown(rows):
    """Rows (column -> text) as a Markdown table with aligned columns."""
    return _aligned(rows, for_markdown)


def terminal_table(rows):
    """The same for a terminal: names are not escaped for Markdown, and long ones are shortened."""
    return _aligned(rows, lambda text: shortened(for_terminal(text).replace("|", "\\|"), LONGEST))


def _aligned(rows, escape):
    right = {escape(column) for column in rows[0] if is_number(column)}
    rows = [{escape(column): escape(cell) for column, cell in row.items()} for row in rows]
    widths = {k: max(3, len(k), *(len(row[k]) for row in rows)) for k in rows[0]}
    lines = [{k: k for k in widths}, {k: "-" * (w - 1) + (":" if k in right else "-") for k, w in widths.items()}]
    cells = ([f"{row[k]:>{w}}" if k in right else f"{row[k]:<{w}}" for k, w in widths.items()] for row in lines + rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)

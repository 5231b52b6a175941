"""What comes out of ``loco-det evaluate``: a page that answers which encoder is better, and the figures as files."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pretrain.files.atomic import write_json, write_whole
from pretrain.files.tables import Table
from pretrain.files.text import for_terminal

from ..report.curves import ap_curves, joint_curves, pr_curves
from ..report.html_page import Link, fill_in
from ..report.page import written
from ..report.pictures import Picture, picture
from ..report.readouts import SAID_ONCE as READOUTS_SAID_ONCE
from ..report.readouts import readout_table
from ..report.tables import without_equal
from .comparisons import Ranking, headlines, protocol_word, rank
from .dots import Dot, axis_of, dot
from .evaluation import Evaluation, Row, read_evaluation
from .files import as_csv, as_json
from .image_errors import ImageErrors
from .pictures import side_by_side
from .tables import (
    SAID_ONCE,
    class_table,
    cost_table,
    notes,
    ordered,
    ranking_table,
    rate_table,
    run_table,
    size_table,
    source_table,
)

MOST_CLASSES = 20  # of a table that is open; a longer one has to be opened
TERMINAL = ("architecture", "seeds")  # columns that a terminal does without
LIGHT_NOTE = (
    "These figures are of a light head on cached features of the frozen encoder. They rank encoders. They are no Mask "
    "R-CNN figures and must not be compared with any."
)
PARTS = {  # id -> text of the list of contents
    "ranking": "Ranking",
    "verdicts": "What differs",
    "sizes": "By size",
    "classes": "By class",
    "rates": "Learning rates",
    "readouts": "Probe and kNN",
    "curves": "Curves",
    "pictures": "Pictures",
    "costs": "Costs",
    "reproduce": "How to reproduce",
    "runs": "Runs",
}
CAPTIONS = {
    "ranking": "AP in percent, averaged over IoU 0.50 to 0.95, on the test images: the mean over seeds ± the 95 % "
    "interval of Student's t. “− random”: above the random control of the same architecture, seed by seed. “–”: not "
    "evaluated, or not known. Top-1 is that of the last stage.",
    "dots": "A line is the 95 % interval over seeds, cut where the axis ends. Small dots are single seeds, a diamond "
    "is the published figure. Random controls are grey. All axes are the same.",
    "sizes": "Means over seeds. Small: below 32² pixels, medium: up to 96², large: above.",
    "classes": "Box AP, means over seeds.",
    "rates": "Box AP on training images that were held out. The test images had no part in the choice. If a rate at an "
    "edge of the grid was chosen, a better one may lie beyond it.",
    "readouts": "Accuracies in percent. Each stage has its own learning rate.",
    "costs": "Times are sums over seeds and rates. Memory is the peak of the main process. Disk is all that is in the "
    "row's folder now.",
}


def write_ranking(folder: str | Path) -> tuple[Path, str]:
    """Write index.html, results.csv and results.json of an evaluation into its folder, each whole or not at all.

    Args:
        folder: of ``loco-det evaluate``, finished or not.

    Returns:
        The page; headline, table and sentences for a terminal.

    Raises:
        FileNotFoundError, ValueError: as :func:`.evaluation.read_evaluation`.
        OSError: if a file cannot be written.
    """
    evaluation = read_evaluation(folder)
    rankings = rank(evaluation, ImageErrors(evaluation))
    page = evaluation.folder / "index.html"
    write_whole(evaluation.folder / "results.csv", as_csv(evaluation))
    write_json(evaluation.folder / "results.json", as_json(evaluation, rankings))
    write_whole(page, render(evaluation, rankings))
    return page, ranking_text(evaluation, rankings)


def ranking_text(evaluation: Evaluation, rankings: Sequence[Ranking] | None = None) -> str:
    """Headline, table and sentences for a terminal.

    Args:
        evaluation: as it was read.
        rankings: as :func:`.comparisons.rank` returns them; None: they are made here.
    """
    rankings = rank(evaluation) if rankings is None else rankings
    table = ranking_table(evaluation, rankings)
    table, shared = without_equal(table, SAID_ONCE, known=True)
    shown = table.without(TERMINAL)
    above = [*headlines(evaluation, rankings), *_cautions(evaluation), ""]
    below = [f"In all rows: {'; '.join(f'{name} {text}' for name, text in shared)}."] if shared else []
    below += _notes(evaluation, rankings)
    sentences = [text for _, found in _verdicts(evaluation, rankings, "bbox") for text in found]
    below += ["", *sentences] if sentences else []
    return "\n".join([*map(for_terminal, above), shown.terminal(), *map(for_terminal, below)])


def render(evaluation: Evaluation, rankings: Sequence[Ranking]) -> str:
    """The page as a string of HTML.

    Args:
        evaluation, rankings: as of :func:`ranking_text`.
    """
    rows = ordered(evaluation, rankings)
    table, shared = without_equal(ranking_table(evaluation, rankings), SAID_ONCE, known=True)
    for row, cells in zip(rows, table.rows, strict=True):
        cells["encoder"] = Link(cells["encoder"], f"#{_anchor(rows, row)}")
    protocols = evaluation.detectors
    readouts, readouts_shared = _readouts(rows)
    values: dict[str, Any] = {
        "table": table,
        "shared": shared,
        "panels": list(_panels(evaluation, rankings, rows)),
        "verdicts": _verdicts(evaluation, rankings, "bbox"),
        "more_verdicts": _verdicts(evaluation, rankings, "segm"),
        "sizes": _by_protocol(evaluation, {name: size_table(evaluation, rows, name) for name in protocols}),
        "classes": _by_protocol(evaluation, {name: class_table(evaluation, rows, name) for name in protocols}),
        "rates": _by_protocol(evaluation, {name: rate_table(evaluation, rows, name) for name in protocols}),
        "readouts": readouts,
        "readouts_shared": readouts_shared,
        "curves": list(_curves(evaluation, rows)),
        "pictures": side_by_side(evaluation, rows),
        "costs": cost_table(evaluation, rows),
        "sources": source_table(evaluation, rows),
        "runs": [_section(evaluation, rows, row, rankings) for row in rows],
    }
    shown = {"ranking": True, "verdicts": values["verdicts"], "reproduce": True}
    parts = [(f"#{name}", text) for name, text in PARTS.items() if shown.get(name, values.get(name))]
    return fill_in(
        "ranking/page.html.j2",
        title=f"Ranking of encoders on {evaluation.data.get('name') or 'the data'}",
        written=written(),
        parts=parts,
        captions=CAPTIONS,
        headlines=headlines(evaluation, rankings),
        cautions=_cautions(evaluation),
        problems=[(row.name, row.problem) for row in rows if row.problem],
        notes=_notes(evaluation, rankings),
        most_classes=MOST_CLASSES,
        commands=evaluation.commands,
        facts=list(_facts(evaluation)),
        keys=list(_keys(rankings)),
        **values,
    )


def _cautions(evaluation: Evaluation) -> list[str]:
    """What has to be known before the figures are read."""
    found = evaluation.settings.get("notes") or []
    return [*([LIGHT_NOTE] if evaluation.is_light else []), *found]


def _notes(evaluation: Evaluation, rankings: Sequence[Ranking]) -> list[str]:
    """A sentence on each row of which there is something to know."""
    found = ((row.name, notes(evaluation, row, rankings)) for row in ordered(evaluation, rankings))
    return [f"{name}: {'; '.join(texts).rstrip('.')}." for name, texts in found if texts]


def _anchor(rows: Sequence[Row], row: Row) -> str:
    return f"row-{rows.index(row)}"


def _readouts(rows: Sequence[Row]) -> tuple[Table, list[tuple[str, str]]]:
    """The table of probe and kNN, and what is the same in all of its rows."""
    runs = [replace(run, name=row.name) for row in rows for run in row.readouts.values() if not run.problem]
    table = readout_table(runs)
    table.columns = [
        replace(column, name="encoder", key="run") if column.name == "run" else column
        for column in table.columns
        if column.name not in ("encoder", "weights")
    ]
    return without_equal(table, [name for name in READOUTS_SAID_ONCE if name != "encoder"])


def _by_protocol(evaluation: Evaluation, tables: dict[str, Table]) -> list[dict[str, Any]]:
    """Title and table of each protocol that has rows."""
    return [{"title": _title(evaluation, name), "table": table} for name, table in tables.items() if table]


def _title(evaluation: Evaluation, protocol: str) -> str:
    return protocol_word(evaluation, protocol).capitalize()


def _panels(evaluation: Evaluation, rankings: Sequence[Ranking], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """A plot of dots for each protocol, the rows in the same order; a group of other settings has its own."""
    shown = [ranking for ranking in rankings if ranking.task == "bbox"]
    axis = axis_of([entry for ranking in shown for entry in ranking.entries])
    for ranking in shown:
        dots: list[Dot] = []
        for row in rows:
            if entry := ranking.entry(row.name):
                dots.append(dot(entry, axis, ranking.metric))
            elif not ranking.note:
                others = [one for one in shown if one.protocol == ranking.protocol and one.entry(row.name)]
                dots.append(Dot(row, "other settings: below" if others else "no figure: see the table"))
        yield {
            "title": f"{_title(evaluation, ranking.protocol)}, {ranking.metric}",
            "note": ranking.note,
            "dots": dots,
            "ticks": axis.ticks,
        }


def _verdicts(evaluation: Evaluation, rankings: Sequence[Ranking], task: str) -> list[tuple[str, list[str]]]:
    """Title and sentences of each ranking with comparisons."""
    found = []
    for ranking in rankings:
        if ranking.task == task and ranking.comparisons:
            title = _title(evaluation, ranking.protocol)
            sentences = [one.sentence for one in ranking.comparisons]
            found.append((title, [f"{title}: {text}" for text in sentences]))
    return found


def _curves(evaluation: Evaluation, rows: Sequence[Row]) -> Iterator[Picture]:
    """Losses, AP and precision by recall of the first seed of each row."""
    for protocol in evaluation.detectors:
        runs = [run for row in rows for run in list(row.runs(protocol))[:1]]
        word = protocol_word(evaluation, protocol)
        kinds = (
            (
                "Losses by iteration",
                joint_curves,
                [run for run in runs if run.series("total_loss")[0]],
            ),
            ("AP by iteration", ap_curves, [run for run in runs if len(run.series("bbox/AP")[0]) > 1]),
            ("Precision by recall", pr_curves, [run for run in runs if run.analysis]),
        )
        for what, draw, shown in kinds:
            if shown:
                alt = f"{what}, {word}, of {', '.join(run.name for run in shown)}"
                yield picture(draw(shown, word), alt, f"{what}, {word}; the first seed of each.")


def _section(evaluation: Evaluation, rows: Sequence[Row], row: Row, rankings: Sequence[Ranking]) -> dict[str, Any]:
    """What the template prints of a row."""
    table = run_table(evaluation, [row])
    checkpoint = ", ".join(row.checkpoints)
    return {
        "anchor": _anchor(rows, row),
        "name": row.name,
        "about": f"{'random control of ' if row.control else ''}{row.architecture or 'architecture not known'}"
        + ("" if row.control or not checkpoint else f", from {checkpoint}"),
        "folder": f"{quote(row.name)}/" if row.folder.is_dir() else "",
        "notes": notes(evaluation, row, rankings),
        "table": table,
    }


def _facts(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Name and text of what was set, for whoever does it again."""
    for part in ("train", "test"):
        files = evaluation.data.get(part) or {}
        for name, value in files.items():
            label = {"json": "annotations", "sha256": "SHA-256 of the annotations"}.get(name, name)
            yield f"{part}: {label}", ", ".join(value) if isinstance(value, list) else str(value or "–")
        if count := evaluation.data.get(f"{part}_images"):
            yield f"{part}: number of images", str(count)
    settings = evaluation.settings
    yield "budget", evaluation.budget or "–"
    yield "seeds", ", ".join(map(str, range(evaluation.seeds)))
    for protocol, rates in evaluation.rates.items():
        yield f"learning rates, {protocol}", ", ".join(f"{rate:g}" for rate in rates)
    if share := settings.get("held_out"):  # percent, or a share
        yield "training images that are held out", f"{share if share >= 1 else 100 * share:g} %"
    for name in ("options", "overlays", "labelled"):
        if value := settings.get(name):
            yield name, " ".join(map(str, value)) if isinstance(value, list) else str(value)
    yield "loco-det", evaluation.version or "–"


def _keys(rankings: Sequence[Ranking]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Comparability key, and the settings behind it."""
    known = {ranking.key: ranking.settings for ranking in rankings if ranking.key}
    for key, settings in known.items():
        yield key, [(str(name), str(value)) for name, value in settings.items()]

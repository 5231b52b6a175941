"""The tables of the ranking's page: figures, sizes, classes, learning rates, costs, where everything comes from."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pretrain.files.tables import DURATION, GENERAL, MEMORY, PLAIN, Column, Format, MeanHalf, Table

from ..report.html_page import Link
from ..report.tables import DIFFERENCE, PERCENT, ap_column, names, number, wrapped
from ..runs.folder import Run
from ..runs.summary import comparability, top1_of
from .comparisons import Ranking, protocol_word
from .evaluation import Evaluation, Row, figure_of

SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
TASKS = {"bbox": "box", "segm": "mask"}
DIGITS = 12  # of a hash that are shown on a terminal
LABELS = {"probe": "linear probe", "knn": "kNN"}
DISK = Format(lambda size: f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB")
SAID_ONCE = ("architecture", "seeds", *(f"{word} rate" for word in ("frozen", "fine-tuned", "light head")))


def ranking_table(evaluation: Evaluation, rankings: Sequence[Ranking]) -> Table:
    """A row for each encoder, the best first; below those with figures come the ones without."""
    words = {protocol: protocol_word(evaluation, protocol) for protocol in evaluation.detectors}
    columns = [Column("encoder")]
    for task in TASKS.values():
        columns += [ap_column(f"{word} {task} AP") for word in words.values()]
        columns += [number(f"{word} {task} AP − random", DIFFERENCE) for word in words.values() if task == "box"]
        columns += [number(f"published {word} {task} AP", PERCENT) for word in words.values()]
    columns += [number(f"{label} top-1", PERCENT) for label in LABELS.values()]
    columns += [*(number(f"{word} rate", GENERAL) for word in words.values()), Column("seeds"), Column("architecture")]
    table = Table(columns)
    for row in ordered(evaluation, rankings):
        cells: dict[str, Any] = {"encoder": row.name + (" (random)" if row.control else "")}
        cells["architecture"] = row.architecture
        for ranking in rankings:
            if entry := ranking.entry(row.name):
                label = f"{words[ranking.protocol]} {ranking.metric}"
                chance = ranking.comparison(row.name)
                cells[label], cells[f"published {label}"] = entry.figure, entry.published
                cells[f"{label} − random"] = _signed(chance.difference) if chance else None
        for protocol, word in words.items():
            cells[f"{word} rate"] = row.chosen(protocol)
        cells |= {f"{LABELS[name]} top-1": top1_of(run) for name, run in row.readouts.items()}
        if any(row.seeds.values()):
            cells["seeds"] = ", ".join(map(str, range(evaluation.seeds)))
        table.rows.append(cells)
    keep = ("encoder", f"{next(iter(words.values()), '')} box AP")
    return table.without_empty([column.name for column in columns if column.name not in keep])


def ordered(evaluation: Evaluation, rankings: Sequence[Ranking]) -> list[Row]:
    """The rows: the best of the first ranking first, then those of the others, then those without a figure."""
    names_found = [entry.row.name for ranking in rankings if ranking.task == "bbox" for entry in ranking.entries]
    places = {name: place for place, name in reversed(list(enumerate(names_found)))}
    return sorted(evaluation.rows, key=lambda row: places.get(row.name, len(names_found)))


def notes(evaluation: Evaluation, row: Row, rankings: Sequence[Ranking]) -> list[str]:
    """What a reader has to know of a row: why figures are missing, or are not comparable."""
    if row.problem:
        return [row.problem]
    found = []
    for protocol in evaluation.detectors:
        word = protocol_word(evaluation, protocol)
        states = {seed: run.state for seed, run in row.seeds[protocol].items() if figure_of(run) is None}
        if states:
            whys = ", ".join(dict.fromkeys(states.values()))
            found.append(f"{word}: {len(states)} of {evaluation.seeds} seeds without a figure ({whys})")
        broken = [f"{word} seed {seed}: {why}" for seed, run in row.seeds[protocol].items() for why in run.problems]
        found += broken
        if any(ranking.note and ranking.entry(row.name) for ranking in rankings if ranking.protocol == protocol):
            found.append(f"{word}: of other settings than the other rows")
        if edge := edge_of(evaluation, row, protocol):
            found.append(f"{word}: rate at the {edge} edge of the grid")
    found += [f"{LABELS[name]}: {run.problem}" for name, run in row.readouts.items() if run.problem]
    return found


def edge_of(evaluation: Evaluation, row: Row, protocol: str) -> str:
    """The edge of the grid, "lower" or "upper", at which the chosen rate is, and beyond which a better one may lie."""
    rates, chosen = sorted(evaluation.rates.get(protocol, [])), row.chosen(protocol)
    if len(rates) < 2 or chosen not in (rates[0], rates[-1]):
        return ""
    return "lower" if chosen == rates[0] else "upper"


def rate_table(evaluation: Evaluation, rows: Iterable[Row], protocol: str) -> Table:
    """AP on the held-out training images by learning rate, and which rate was chosen."""
    rates = sorted(evaluation.rates.get(protocol, []))
    columns = [Column("encoder"), wrapped("chosen")]
    table = Table([*columns, *(number(f"rate {rate:g}", PERCENT) for rate in rates)])
    for row in rows:
        if not (choices := row.choices.get(protocol)):
            continue
        chosen, edge = row.chosen(protocol), edge_of(evaluation, row, protocol)
        text = None if chosen is None else f"{chosen:g}" + (f", at the {edge} edge of the grid" if edge else "")
        cells = {f"rate {rate:g}": _or_state(run) for rate, run in choices.items()}
        table.rows.append({"encoder": row.name, "chosen": text, **cells})
    return table


def size_table(evaluation: Evaluation, rows: Iterable[Row], protocol: str) -> Table:
    """AP by the size of the objects, the mean over the seeds."""
    columns = [Column("encoder")]
    for word in TASKS.values():
        columns += [ap_column(f"{word} AP"), *(number(f"{word} AP {size}", PERCENT) for size in SIZES.values())]
        columns += [number(f"{word} {metric}", PERCENT) for metric in ("AP50", "AP75")]
    table = Table(columns)
    for row in rows:
        runs = list(row.runs(protocol))
        cells: dict[str, Any] = {"encoder": row.name}
        for task, word in TASKS.items():
            for metric in ("AP", "AP50", "AP75"):
                cells[f"{word} {metric}"] = mean_of(runs, task, metric)
            cells |= {f"{word} AP {size}": mean_of(runs, task, metric) for metric, size in SIZES.items()}
        table.rows += [cells] if any(value is not None for value in list(cells.values())[1:]) else []
    return table.without_empty([column.name for column in columns[2:]])


def class_table(evaluation: Evaluation, rows: Iterable[Row], protocol: str) -> Table:
    """Box AP of each class, the mean over the seeds, a column for each encoder; empty for one class, whose AP is that
    of all."""
    rows = [row for row in rows if any(figure_of(run) is not None for run in row.runs(protocol))]
    table = Table([Column("class"), number("objects", PLAIN)])
    table.columns += [Column(row.name, PERCENT, style="number", key=f"row {row.name}") for row in rows]
    runs = {row.name: list(row.runs(protocol)) for row in rows}
    every = [run for found in runs.values() for run in found]
    classes = dict.fromkeys(name for run in every for name in run.detection.thing_classes or [])
    classes = classes or dict.fromkeys(evaluation.data.get("classes") or [])
    for name in classes:
        cells: dict[str, Any] = {"class": name, "objects": _objects(every, name)}
        cells |= {f"row {row}": mean_of(found, "bbox", f"AP-{name}") for row, found in runs.items()}
        table.rows.append(cells)
    return table.without_empty(["objects"]) if rows and len(classes) > 1 else Table([])


def cost_table(evaluation: Evaluation, rows: Iterable[Row]) -> Table:
    """What each encoder took: the time of training and evaluation, peak memory, and disk."""
    columns = [Column("encoder")]
    for protocol in evaluation.detectors:
        word = protocol_word(evaluation, protocol)
        columns += [number(f"{word}: {part}", DURATION) for part in ("choosing the rate", "training", "evaluation")]
    columns += [number(label, DURATION) for label in LABELS.values()]
    table = Table([*columns, number("peak memory", MEMORY), number("disk", DISK)])
    for row in rows:
        cells: dict[str, Any] = {"encoder": row.name, "disk": _disk(row.folder) or None}
        peaks = []
        for protocol in evaluation.detectors:
            word, runs = protocol_word(evaluation, protocol), list(row.runs(protocol))
            choices = [run for run in row.choices.get(protocol, {}).values() if not run.problem]
            cells[f"{word}: choosing the rate"] = _total(run.seconds for run in choices)
            cells[f"{word}: training"] = _total(run.seconds for run in runs)
            cells[f"{word}: evaluation"] = _total(run.detection.evaluation_seconds for run in runs)
            peaks += [run.detection.peak_memory for run in runs]
        for name, label in LABELS.items():
            cells[label] = row.readouts[name].seconds if name in row.readouts else None
        cells["peak memory"] = max((peak for peak in peaks if peak), default=None)
        table.rows.append(cells)
    return table.without_empty([column.name for column in table.columns[1:]])


def source_table(evaluation: Evaluation, rows: Iterable[Row]) -> Table:
    """What was evaluated: the checkpoint of each encoder, its hash, that of the converted weights, and its layout."""
    table = Table([Column("encoder"), names("checkpoint"), wrapped("SHA-256"), wrapped("SHA-256 of converted weights")])
    table.columns += [Column("layout"), Column("architecture")]
    for row in rows:
        runs = [run for protocol in evaluation.detectors for run in row.runs(protocol)]
        weights = dict.fromkeys(run.detection.weights_sha256 for run in runs if run.detection.weights_sha256)
        layouts = dict.fromkeys(str(found["layout"]) for found in row.conversions if found.get("layout"))
        cells = {
            "encoder": row.name,
            "checkpoint": ", ".join(row.checkpoints) or None,
            "SHA-256": ", ".join(row.sha256) or None,
            "SHA-256 of converted weights": ", ".join(weights) or None,
            "layout": ", ".join(layouts) or None,
            "architecture": row.architecture,
        }
        table.rows.append(cells)
    return table.without_empty(["layout", "architecture", "SHA-256", "SHA-256 of converted weights"])


def run_table(evaluation: Evaluation, rows: Iterable[Row]) -> Table:
    """Every run of the rows, with a link to its folder, which is beneath that of the page."""
    columns = [Column("run"), Column("box AP", PERCENT, style="ap"), number("mask AP", PERCENT)]
    columns += [number("top-1", PERCENT), Column("state"), number("rate", GENERAL), number("time", DURATION)]
    table = Table([*columns, Column("key")])
    for row in rows:
        for run in every_run(row):
            name = run.folder.relative_to(evaluation.folder).as_posix()
            cells = {
                "run": Link(name, f"{quote(name)}/") if run.folder.is_dir() else name,
                "box AP": figure_of(run),
                "mask AP": figure_of(run, "segm"),
                "top-1": top1_of(run),
                "state": run.state,
                "rate": run.key("SOLVER.BASE_LR"),
                "time": run.seconds,
                "key": (comparability(run).get("key") or "")[:DIGITS] or None,
            }
            table.rows.append(cells)
    return table.without_empty([column.name for column in table.columns[2:]])


def every_run(row: Row) -> list[Run]:
    """The runs of a row: those of the test figures, those that chose learning rates, readouts."""
    runs = [run for found in row.seeds.values() for run in found.values()]
    runs += [run for found in row.choices.values() for run in found.values()]
    return runs + list(row.readouts.values())


def mean_of(runs: Sequence[Run], task: str, metric: str) -> float | None:
    """Mean of a figure over runs; None if one of them lacks it."""
    values = [figure_of(run, task, metric) for run in runs if figure_of(run) is not None]
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known and len(known) == len(values) else None


def _signed(difference) -> float | MeanHalf:
    mean, half, _ = difference
    return mean if half is None else MeanHalf(mean, half, signed=True)


def _or_state(run: Run) -> float | str:
    figure = figure_of(run)
    return figure if figure is not None else run.state


def _objects(runs: Sequence[Run], name: str) -> int | None:
    """The number of test objects of a class, of the first run whose analysis says it."""
    for run in runs:
        for task in run.analysis.get("tasks", {}).values():
            if name in task["per_class"]:
                return task["per_class"][name].get("objects")
    return None


def _total(seconds: Iterable[float | None]) -> float | None:
    known = [value for value in seconds if value]
    return sum(known) if known else None


def _disk(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())

"""results.csv and results.json of an evaluation: all figures, for tables and scripts of one's own."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from pretrain.files.tables import csv_cells
from pretrain.files.version import version

from ..runs.folder import Run
from ..runs.summary import comparability, top1_of
from .comparisons import Entry, Ranking, headlines
from .evaluation import Evaluation, Row, figure_of

VERSION = 1  # of results.json
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TASKS = {"bbox": "box", "segm": "mask"}
ABOUT = ("name", "checkpoint", "sha256", "protocol", "seed", "rate")
COLUMNS = (
    *ABOUT,
    *(f"{word}_{metric}" for word in TASKS.values() for metric in METRICS),
    *("top1", "seconds", "key", "state", "folder", "problem"),
)


def as_csv(evaluation: Evaluation) -> str:
    """A line for each row, protocol and seed, also of runs without figures; one for a row that was refused.

    Args:
        evaluation: as it was read.

    Returns:
        Text with a head; what is not known is empty. AP and accuracies are in percent, folders relative to the file.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(csv_cells(line) for row in evaluation.rows for line in lines(evaluation, row))
    return text.getvalue()


def lines(evaluation: Evaluation, row: Row) -> list[dict[str, Any]]:
    """The lines of a row: column -> value, None where it is not known."""
    if row.problem:
        return [{**dict.fromkeys(COLUMNS), **_of_row(row, 0), "problem": row.problem}]
    found = []
    for protocol, runs in row.seeds.items():
        for seed, run in runs.items():
            about = {**_of_row(row, seed), "protocol": protocol, "seed": seed, "rate": row.chosen(protocol)}
            found.append({**about, **_figures(run), "folder": _place(evaluation, run)})
    for name, run in row.readouts.items():
        found.append({**_of_row(row, 0), "protocol": name, **_figures(run), "folder": _place(evaluation, run)})
    return [{**dict.fromkeys(COLUMNS), **line} for line in found]


def as_json(evaluation: Evaluation, rankings: Sequence[Ranking]) -> dict[str, Any]:
    """All of it: settings, rows with their runs, means, intervals, comparisons with what they say.

    Args:
        evaluation: as it was read.
        rankings: as :func:`.comparisons.rank` returns them.
    """
    return {
        "version": VERSION,
        "loco_det": version(),
        "headline": " ".join(headlines(evaluation, rankings)),
        "light_head": evaluation.is_light,
        "settings": evaluation.settings,
        "rows": [_row(evaluation, row) for row in evaluation.rows],
        "rankings": [_ranking(ranking) for ranking in rankings],
    }


def _of_row(row: Row, seed: int) -> dict[str, Any]:
    """Name and checkpoint of a row; of several checkpoints that of the seed."""
    digits = row.sha256[seed % len(row.sha256)] if row.sha256 else None
    return {"name": row.name, "checkpoint": row.checkpoints[seed % len(row.checkpoints)], "sha256": digits}


def _figures(run: Run) -> dict[str, Any]:
    aps = {f"{word}_{metric}": figure_of(run, task, metric) for task, word in TASKS.items() for metric in METRICS}
    key = comparability(run).get("key")
    return {**aps, "top1": top1_of(run), "seconds": run.seconds, "key": key, "state": run.state}


def _place(evaluation: Evaluation, run: Run) -> str:
    return run.folder.relative_to(evaluation.folder).as_posix()


def _row(evaluation: Evaluation, row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "checkpoints": row.checkpoints,
        "sha256": row.sha256,
        "control": row.control,
        "architecture": row.architecture,
        "problem": row.problem,
        "rates": {protocol: row.chosen(protocol) for protocol in row.seeds},
        "held_out": {
            protocol: [{"rate": rate, "box_AP": figure_of(run), "state": run.state} for rate, run in choices.items()]
            for protocol, choices in row.choices.items()
        },
        "runs": [] if row.problem else lines(evaluation, row),
    }


def _ranking(ranking: Ranking) -> dict[str, Any]:
    return {
        "protocol": ranking.protocol,
        "task": ranking.task,
        "metric": ranking.metric,
        "key": ranking.key,
        "key_settings": ranking.settings,
        "note": ranking.note,
        "entries": [_entry(entry) for entry in ranking.entries],
        "comparisons": [
            {
                "first": one.first,
                "second": one.second,
                "kind": one.kind,
                "mean": one.difference.mean,
                "half": one.difference.half,
                "seeds": one.difference.seeds,
                "over_images": one.over_images and one.over_images._asdict(),
                "verdict": one.sentence,
            }
            for one in ranking.comparisons
        ],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.row.name,
        "control": entry.row.control,
        "mean": entry.mean,
        "half": entry.half,
        "seeds": {str(seed): value for seed, value in entry.values.items()},
        "missing": {str(seed): why for seed, why in entry.missing.items()},
        "published": entry.published,
    }

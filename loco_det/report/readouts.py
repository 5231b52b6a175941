"""Table of readouts: what linear probe and kNN found on each stage of an encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.files.results import KnnResults, LinearResults, ReadoutResults, Results
from pretrain.files.tables import GENERAL, PLAIN, Column, Table, decimals

from ..runs.folder import Run
from .tables import names, number

KINDS = {"linear": "linear", "knn": "kNN"}  # kind of results -> name in the table
ACCURACY = decimals(2)
COLUMNS = [
    *(Column("run"), Column("state"), Column("readout"), Column("encoder"), names("weights"), names("dataset")),
    *(Column("stage"), Column("top-1", ACCURACY, style="ap"), number("top-5", ACCURACY)),
    *(number("learning rate", GENERAL), Column("chosen on"), number("k", PLAIN), number("temperature", GENERAL)),
]
SAID_ONCE = ("state", "readout", "encoder", "weights", "dataset", "chosen on", "temperature")  # on a page, if equal
OPTIONAL = ("top-5", "learning rate", "chosen on", "k", "temperature")


def readout_table(runs: Sequence[Run]) -> Table:
    """The runs of tools/linear_probe.py and tools/knn.py; those of other kinds are passed over.

    A row for each stage, of kNN for each stage, K and TEMPERATURE, none of which is chosen for being the best; one for
    a run without results.
    """
    table = Table(COLUMNS)
    for run in (run for run in runs if run.kind == "readout"):
        table.rows += [{**_about(run), **cells} for cells in _figures(run.results) or [{}]]
    return table.without_empty(OPTIONAL)


def readouts_text(runs: Sequence[Run]) -> str:
    """The table of :func:`readout_table` for a terminal; empty if there is no readout."""
    table = readout_table(runs)
    return table.terminal() if table else ""


def _about(run: Run) -> dict[str, str | None]:
    """The cells that all rows of a run share."""
    results = run.results if isinstance(run.results, ReadoutResults) else ReadoutResults()
    weights, images = results.weights or {}, run.key("DATASETS.TEST") or run.key("DATASETS.TRAIN")
    alone = "" if run.key("DATASETS.TEST") or not images else " (leave-one-out)"
    return {
        "run": run.name,
        "state": run.state,
        "readout": KINDS[results.KIND] if run.results else None,
        "encoder": weights.get("arch"),
        "weights": _short(weights.get("path") or run.key("MODEL.WEIGHTS")),
        "dataset": f"{_short(images)}{alone}" if images else None,
    }


def _short(path: Any) -> str | None:
    """The last two parts of a path: runs and data sets tend to lie in folders that tell what they are."""
    return "/".join(Path(str(path)).parts[-2:]) if path else None


def _figures(results: Results | None) -> list[dict[str, Any]]:
    if isinstance(results, LinearResults):
        return _linear_rows(results)
    return _knn_rows(results) if isinstance(results, KnnResults) else []


def _linear_rows(results: LinearResults) -> list[dict[str, Any]]:
    where, rows = (results.protocol or {}).get("chosen_on"), []
    for name, stage in results.linear.items():
        rate = "all diverged" if stage.lr is None else stage.lr
        row = {"stage": name, "top-1": stage.top1, "top-5": stage.top5, "learning rate": rate, "chosen on": where}
        rows.append(row)
    return rows


def _knn_rows(results: KnnResults) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "top-1": tops.top1, "top-5": tops.top5, **key._asdict()}
        for stage, settings in results.knn.items()
        for key, tops in settings.items()
    ]

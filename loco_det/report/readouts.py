"""Table of readouts: what linear probe and kNN found on each stage of an encoder."""

from pathlib import Path

from .tables import NOTHING, Cell, terminal_table, without_empty

KINDS = {"linear": "linear", "knn": "kNN"}  # part of results.json -> name in the table


def readout_rows(runs):
    """Rows (column -> text) of the runs of tools/linear_probe.py and tools/knn.py.

    Args:
        runs: list of Run; those of other kinds are passed over.

    Returns:
        list of dicts: one for each stage, of kNN for each stage, K and TEMPERATURE, none of which is chosen for being
        the best; one for a run without results.
    """
    rows = []
    for run in runs:
        if run.kind == "readout":
            about, figures = _about(run), _linear_figures(run) + _knn_figures(run)
            rows += [about | cells for cells in figures or [_figures(NOTHING, {})]]
    return without_empty(rows, ["top-5", "learning rate", "chosen on", "k", "temperature"])


def readouts_text(runs):
    """The table of :func:`readout_rows` for a terminal; empty if there is no readout."""
    rows = readout_rows(runs)
    return terminal_table(rows) if rows else ""


def _about(run):
    """The cells that all rows of a run share."""
    weights = run.results.get("weights") or {}
    path = weights.get("path") or run.key("MODEL.WEIGHTS")
    images = run.key("DATASETS.TEST") or run.key("DATASETS.TRAIN")
    alone = "" if run.key("DATASETS.TEST") or not images else " (leave-one-out)"
    known = [name for part, name in KINDS.items() if part in run.results]
    return {
        "run": run.name,
        "state": run.state,
        "readout": known[0] if known else NOTHING,
        "encoder": weights.get("arch") or NOTHING,
        "weights": _short(path),
        "dataset": _short(images) + alone,
    }


def _short(path):
    """The last two parts of a path: runs and data sets tend to lie in folders that tell what they are."""
    return "/".join(Path(str(path)).parts[-2:]) if path else NOTHING


def _figures(stage, row, **setting):
    """The cells of a row of results.json; ``setting`` has those that tell how it came about."""
    blank = dict.fromkeys(("learning rate", "chosen on", "k", "temperature"), NOTHING)
    return {"stage": stage, "top-1": _percent(row.get("top1")), "top-5": _percent(row.get("top5"))} | blank | setting


def _percent(value):
    return NOTHING if value is None else Cell(f"{value:.2f}", value)


def _linear_figures(run):
    where = (run.results.get("protocol") or {}).get("chosen_on") or NOTHING
    rows = []
    for stage, row in (run.results.get("linear") or {}).items():
        rate = row.get("lr")
        learning_rate = "all diverged" if rate is None else Cell(f"{rate:g}", rate)
        rows.append(_figures(stage, row, **{"learning rate": learning_rate, "chosen on": where}))
    return rows


def _knn_figures(run):
    rows = []
    for stage, settings in (run.results.get("knn") or {}).items():
        for name, row in settings.items():  # such as k200_t0.07
            k, _, temperature = name.removeprefix("k").partition("_t")
            rows.append(_figures(stage, row, k=Cell(k, float(k)), temperature=Cell(temperature, float(temperature))))
    return rows

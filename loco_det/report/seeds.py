"""Runs that differ in their seed only: mean and standard deviation."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from pretrain.files.results import Published
from pretrain.files.tables import Column, MeanStd, Table

from ..runs.folder import Run
from .tables import APS, DIFFERENCE, PERCENT, ap, ap_column, finite, minus, number

# A folder of a seed, as tools/demo.py makes them around its runs, or a run whose name ends so
SEED = re.compile(r"((?:.*[/_-])?)seed(\d+)((?:_long)?(?:/.+)?)")
SHOWN = {column: keys for column, keys in APS.items() if not column.endswith("75")}


def _columns() -> list[Column]:
    columns = [Column("run"), Column("seeds")]
    for name in SHOWN:
        columns.append(ap_column(name))
        if name.endswith(" AP"):
            columns += [number(f"published {name}", PERCENT), number(f"mean − published {name}", DIFFERENCE)]
    return columns


def _row(name: str, aps: dict[int, np.ndarray], published: Published | None = None, signed: bool = False) -> dict:
    """Mean ± sample standard deviation of ``aps``: seed -> an array with a value for each column of SHOWN."""
    cells: dict[str, Any] = {"run": name, "seeds": ", ".join(map(str, sorted(aps)))}
    for column, values in zip(SHOWN, np.transpose(list(aps.values())), strict=True):
        known = np.isfinite(values).all()  # a mean over some of the seeds would pass for one over all
        mean = float(values.mean()) if known else None
        cells[column] = None if mean is None else MeanStd(mean, float(values.std(ddof=1)), signed)
        figure = getattr(published, f"{column.split()[0]}_ap", None) or None
        if column.endswith(" AP"):
            cells |= {f"published {column}": figure, f"mean − published {column}": minus(mean, figure)}
    return cells


def seeds_table(runs: Sequence[Run]) -> Table:
    """Mean ± standard deviation over seeds, for evaluated detection runs.

    Runs belong together if their folders differ only in the number of ``seed<N>`` (perhaps ``seed<N>_long``), which is
    the name of a parent folder, or of the run's own, or ends its own after ``_`` or ``-``. They are shown if there are
    two or more. Last comes frozen_loco − frozen_random, as differences seed by seed, because the two share what else
    the seed decides.
    """
    groups: dict[tuple[str, str], dict[int, np.ndarray]] = defaultdict(dict)
    names: dict[tuple[str, str], str] = {}
    published: dict[tuple[str, str], Published | None] = {}
    for run in runs:
        match = SEED.fullmatch(run.folder.resolve().as_posix())
        if not match or not run.results:
            continue
        for dataset, tasks in run.evaluations.items():
            key = (f"{match[1]}seed*{match[3]}", dataset)
            groups[key][int(match[2])] = np.array([finite(ap(tasks, *keys)) for keys in SHOWN.values()])
            names[key] = SEED.sub(r"\1seed*\3", run.name) + (f", {dataset}" if len(run.evaluations) > 1 else "")
            same = published.get(key, run.published) if run.published and run.published.comparable else None
            published[key] = same
    table = Table(_columns())
    table.rows = [_row(names[key], aps, published[key]) for key, aps in groups.items() if len(aps) > 1]
    for (folder, dataset), aps in groups.items():
        if folder.endswith("/frozen_loco"):
            control = groups.get((f"{folder.removesuffix('loco')}random", dataset), {})
            differences = {seed: aps[seed] - control[seed] for seed in aps if seed in control}
            if len(differences) > 1:
                table.rows.append(_row(f"{names[folder, dataset]} − frozen_random", differences, signed=True))
    return _without_unpublished(table)


def _without_unpublished(table: Table) -> Table:
    """The table without the columns about published figures, if no row has one."""
    about = [column for column in table.columns if "published" in column.name]
    shown = any(column.value(row) is not None for column in about for row in table.rows)
    return table if shown else table.without([column.name for column in about])


def seeds_text(runs: Sequence[Run]) -> str:
    """The table of :func:`seeds_table` for a terminal; empty if no run has several seeds."""
    table = seeds_table(runs)
    return table.terminal() if table else ""

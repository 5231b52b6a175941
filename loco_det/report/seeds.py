"""Runs that differ in their seed only: mean and standard deviation."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.files.results import Published
from pretrain.files.tables import Column, MeanStd, Table

from ..runs.folder import Run
from .tables import APS, DIFFERENCE, PERCENT, ap, ap_column, finite, minus, number
from .verdicts import paired, verdict

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
    """Mean ± standard deviation over seeds, for evaluated detection runs that can be compared.

    Runs belong together if their folders differ only in the number of ``seed<N>`` (perhaps ``seed<N>_long``), which is
    the name of a parent folder, or of the run's own, or ends its own after ``_`` or ``-``. They are shown if there are
    two or more. Last come the differences from the random control, ``frozen_<name>`` − ``frozen_random`` and likewise
    ``finetune_``, seed by seed, because the two share what else the seed decides.
    """
    groups = _groups(runs)
    table = Table(_columns())
    table.rows = [_row(group.name, group.aps, group.published) for group in groups.values() if len(group.aps) > 1]
    for group, control in _with_controls(groups):
        differences = {seed: group.aps[seed] - control.aps[seed] for seed in group.aps if seed in control.aps}
        if len(differences) > 1:
            table.rows.append(_row(f"{group.name} − {control.folder}", differences, signed=True))
    return _without_unpublished(table)


def seeds_verdicts(runs: Sequence[Run]) -> list[str]:
    """A sentence on each run of :func:`seeds_table` that has a control: is it above that, in box AP and in mask AP?"""
    places, found = {column: place for place, column in enumerate(SHOWN) if column.endswith(" AP")}, []
    for group, control in _with_controls(_groups(runs)):
        for column, place in places.items():
            first, second = ({seed: aps[place] for seed, aps in one.aps.items()} for one in (group, control))
            if (difference := paired(first, second)) and difference.seeds > 1:
                found.append(verdict(group.name, control.name, difference, column, control=True))
    return found


@dataclass
class _Group:
    """Runs of several seeds: their name, that of their folders, their APs by seed, and the published row of all."""

    name: str
    folder: str
    aps: dict[int, np.ndarray]
    published: Published | None


def _groups(runs: Sequence[Run]) -> dict[tuple[str, str, str], _Group]:
    """(path with seed*, data set, key of what can be compared) -> the runs there."""
    found: dict[tuple[str, str, str], _Group] = {}
    for run in runs:
        match = SEED.fullmatch(run.folder.resolve().as_posix())
        if not match or not run.detection.comparability:
            continue
        for dataset, tasks in run.evaluations.items():
            key = (f"{match[1]}seed*{match[3]}", dataset, run.detection.comparability.key)
            group = found.setdefault(key, _Group("", run.folder.name, {}, run.published))
            group.aps[int(match[2])] = np.array([finite(ap(tasks, *keys)) for keys in SHOWN.values()])
            group.name = SEED.sub(r"\1seed*\3", run.name) + (f", {dataset}" if len(run.evaluations) > 1 else "")
            group.published = group.published if run.published and run.published.comparable else None
    return found


def _with_controls(groups: dict[tuple[str, str, str], _Group]) -> Iterator[tuple[_Group, _Group]]:
    """The groups that have a random control beside them with which they can be compared, and that."""
    for (path, dataset, key), group in groups.items():
        kind, _, name = group.folder.partition("_")
        control = groups.get((f"{path.removesuffix(name)}random", dataset, key))
        if kind in ("frozen", "finetune") and name not in ("", "random") and control:
            yield group, control


def _without_unpublished(table: Table) -> Table:
    """The table without the columns about published figures, if no row has one."""
    about = [column for column in table.columns if "published" in column.name]
    shown = any(column.value(row) is not None for column in about for row in table.rows)
    return table if shown else table.without([column.name for column in about])


def seeds_text(runs: Sequence[Run]) -> str:
    """The table and the sentences for a terminal; empty if no run has several seeds."""
    table = seeds_table(runs)
    return "\n".join([table.terminal(), *seeds_verdicts(runs)]) if table else ""

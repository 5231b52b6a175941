"""Runs that differ in their seed only: mean and standard deviation."""

import math
import re
from collections import defaultdict

import numpy as np

from .tables import APS, NOTHING, ap, one_decimal

# A folder of a seed, as tools/demo.py makes them around its runs, or a run whose name ends so
SEED = re.compile(r"((?:.*[/_-])?)seed(\d+)((?:_long)?(?:/.+)?)")
SHOWN = {column: keys for column, keys in APS.items() if not column.endswith("75")}


def _seeds_row(name, aps, published=None, sign=""):
    """Mean ± sample standard deviation of ``aps``: seed -> an array with a value for each column of SHOWN."""
    cells = {"run": name, "seeds": ", ".join(map(str, sorted(aps)))}
    for column, values in zip(SHOWN, np.transpose(list(aps.values())), strict=True):
        known = np.isfinite(values).all()  # a mean over some of the seeds would pass for one over all
        cells[column] = f"{values.mean():{sign}.1f} ± {values.std(ddof=1):.1f}" if known else NOTHING
        figure = (published or {}).get(f"{column.split()[0]}_ap")
        if column.endswith(" AP"):
            cells[f"published {column}"] = one_decimal(figure or math.nan)
            cells[f"mean − published {column}"] = one_decimal(values.mean() - (figure or math.nan), "+")
    return cells


def seeds_rows(runs):
    """Rows (column -> text) of mean ± standard deviation over seeds, for evaluated detection runs.

    Runs belong together if their folders differ only in the number of ``seed<N>`` (perhaps ``seed<N>_long``), which is
    the name of a parent folder, or of the run's own, or ends its own after ``_`` or ``-``. They are shown if there are
    two or more. Last comes frozen_loco − frozen_random, as differences seed by seed, because the two share what else
    the seed decides.
    """
    groups, names, published = defaultdict(dict), {}, {}
    for run in runs:
        match = SEED.fullmatch(run.folder.resolve().as_posix())
        for dataset, tasks in run.evaluations.items() if match and run.results else ():
            key = (f"{match[1]}seed*{match[3]}", dataset)
            groups[key][int(match[2])] = np.array([ap(tasks, *keys) for keys in SHOWN.values()])
            names[key] = SEED.sub(r"\1seed*\3", run.name) + (f", {dataset}" if len(run.evaluations) > 1 else "")
            same = published.get(key, run.published) if run.published and not run.published["differences"] else {}
            published[key] = same
    rows = [_seeds_row(names[key], aps, published[key]) for key, aps in groups.items() if len(aps) > 1]
    for (folder, dataset), aps in groups.items():
        if folder.endswith("/frozen_loco"):
            control = groups.get((f"{folder.removesuffix('loco')}random", dataset), {})
            differences = {seed: aps[seed] - control[seed] for seed in aps if seed in control}
            if len(differences) > 1:
                rows.append(_seeds_row(f"{names[folder, dataset]} − frozen_random", differences, sign="+"))
    return without_unpublished(rows)


def without_unpublished(rows):
    """The rows without the columns about published figures, if no row has one."""
    shown = any("published" in column and cell != NOTHING for row in rows for column, cell in row.items())
    return [{c: cell for c, cell in row.items() if shown or "published" not in c} for row in rows]

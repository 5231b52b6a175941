"""Several runs: finding them beneath a folder, and tables of them, over seeds too."""

import math
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from loco_det.run_folder import read_run

NOTHING = "–"
# Column -> task and metric in results.json
APS = {"box AP": ("bbox", "AP"), "box AP50": ("bbox", "AP50"), "mask AP": ("segm", "AP"), "mask AP50": ("segm", "AP50")}
SEED = re.compile(r"(.*/)?seed(\d+)((?:_long)?/.+)")  # a run beneath a folder of its seed, as tools/demo.py makes them


def find_runs(roots):
    """Read every run at or beneath the given folders.

    Args:
        roots: a folder or a list of folders.

    Returns:
        list of Run, in the order of ``roots`` and of their paths; names are relative to what they have in common.

    Raises:
        FileNotFoundError: if a folder is not there or holds no run.
        ValueError: as :func:`read_run`.
    """
    folders = {}  # in the order of insertion, each once
    for root in [roots] if isinstance(roots, str | Path) else roots:
        if not Path(root).is_dir():
            raise FileNotFoundError(f"{root} is not a folder")
        found = {p.parent for name in ("metrics.json", "results.json") for p in Path(root).rglob(name)}
        if not found:
            raise FileNotFoundError(f"no runs at or beneath {root}: a run folder has a metrics.json or a results.json")
        folders.update({folder.resolve(): folder for folder in sorted(found)})
    runs = [read_run(folder) for folder in folders.values()]
    if len(runs) > 1:
        common = os.path.commonpath(list(folders))
        for run, folder in zip(runs, folders, strict=True):
            run.name = os.path.relpath(folder, common) if str(folder) != common else run.name
    return runs


def _duration(seconds):
    if seconds is None:
        return NOTHING
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _ap(tasks, task, key):
    """In percent; NaN where it was not evaluated or had no objects."""
    value = tasks.get(task, {}).get(key)
    return math.nan if value is None else value


def _one_decimal(value):
    return f"{value:.1f}" if math.isfinite(value) else NOTHING


def _iterations(run):
    planned, done = run.key("SOLVER.MAX_ITER"), run.iterations
    if done is None:
        return NOTHING
    return f"{done} of {planned}" if planned and done < planned else str(done)


def _decoder(run):
    """The decoder that a pretraining run looked through; published comparisons were unfair for not saying it."""
    keys = run.key("MODEL.DECODER")
    if not keys or "CONV_BLOCKS" not in keys or run.key("MODEL.UNITS") == []:  # no unit, no loss: the random control
        return NOTHING
    blocks, copies = keys["CONV_BLOCKS"], keys.get("STAGES", 0)
    parts = []
    if copies:
        which = "the next stage" if copies == 1 else f"the next {copies} stages" if copies > 0 else "all stages above"
        parts.append(f"copy of {which}{', tied ' + str(keys['TIE']) if keys.get('TIE') else ''}")
    conv = f"{blocks} conv block{'s' * (blocks != 1)}{', downsampling' if keys.get('DOWNSAMPLE') else ''}"
    parts.append(conv if blocks else "no conv block")
    if keys.get("EXPANSION"):
        parts.append(f"1x1 conv {keys['EXPANSION']}")
    widths = [keys.get("HIDDEN_DIM")] * (keys.get("MLP_LAYERS", 2) - 1) + [keys.get("OUT_DIM")]
    return ", ".join([*parts, "MLP " + "-".join(map(str, widths))])


def detection_rows(runs):
    """One row (column -> text) for each detection run and test set; before its evaluation it comes from its config."""
    pretrained = {run.folder.resolve(): run for run in runs if run.kind == "pretraining"}
    rows = []
    for run in runs:
        weights = Path(str(run.results.get("weights") or run.key("MODEL.WEIGHTS") or NOTHING))
        source = pretrained.get(weights.resolve().parent)
        depth = run.key("MODEL.RESNETS.DEPTH")
        frozen = run.results.get("frozen", run.key("MODEL.BACKBONE.FREEZE_AT", 0) >= 5)
        for dataset, tasks in run.evaluations.items() if run.kind == "detection" else ():
            cells = {
                "run": run.name,
                "backbone": str(run.results.get("backbone") or (f"ResNet-{depth}" if depth else NOTHING)),
                "weights": "/".join(weights.parts[-2:]),
                "decoder": _decoder(source) if source else NOTHING,
                "trained": "frozen" if frozen else "fine-tuned",
                "dataset": dataset,
                "iterations": _iterations(run),
                "time": _duration(run.seconds),
            }
            cells |= {column: _one_decimal(_ap(tasks, *keys)) for column, keys in APS.items()}
            for name, task in (("box", "bbox"), ("mask", "segm")):
                sizes = (_one_decimal(_ap(tasks, task, f"AP{size}")) for size in "sml")
                cells[f"{name} APs / m / l"] = " / ".join(sizes)
            rows.append(cells)
    if all(row["decoder"] == NOTHING for row in rows):
        for row in rows:
            del row["decoder"]
    return rows


def pretraining_rows(runs):
    """One row (column -> text) for each pretraining run."""
    rows = []
    for run in runs:
        if run.kind != "pretraining":
            continue
        units = run.key("MODEL.UNITS")
        losses = {name.removeprefix("loss_"): run.series(name)[1] for name in run.unit_losses}
        change = ", ".join(f"{name} {values[0]:.2f} → {values[-1]:.2f}" for name, values in losses.items())
        cells = {
            "run": run.name,
            "iterations": _iterations(run),
            "time": _duration(run.seconds),
            "encoder": str(run.key("MODEL.ENCODER", NOTHING)),
            "units": NOTHING if units is None else ", ".join("+".join(unit) for unit in units) or "none: random",
            "decoder": _decoder(run),
            "loss, first → last logged": change or NOTHING,
        }
        rows.append(cells)
    return rows


def _seeds_row(name, aps, sign=""):
    """Mean ± sample standard deviation of ``aps``: seed -> an array with a value for each column of APS."""
    cells = {"run": name, "seeds": ", ".join(map(str, sorted(aps)))}
    for column, values in zip(APS, np.transpose(list(aps.values())), strict=True):
        known = np.isfinite(values).all()  # a mean over some of the seeds would pass for one over all
        cells[column] = f"{values.mean():{sign}.1f} ± {values.std(ddof=1):.1f}" if known else NOTHING
    return cells


def seeds_rows(runs):
    """Rows (column -> text) of mean ± standard deviation over seeds, for evaluated detection runs.

    Runs belong together if their folders differ only in the number of a parent folder ``seed<N>`` or ``seed<N>_long``,
    and are shown if there are two or more. Last comes frozen_loco − frozen_random, as differences seed by seed, because
    the two share what else the seed decides.
    """
    groups, names = defaultdict(dict), {}
    for run in runs:
        match = SEED.fullmatch(run.folder.resolve().as_posix())
        for dataset, tasks in run.evaluations.items() if match and run.results else ():
            key = (f"{match[1]}seed*{match[3]}", dataset)
            groups[key][int(match[2])] = np.array([_ap(tasks, *keys) for keys in APS.values()])
            names[key] = SEED.sub(r"\1seed*\3", run.name) + (f", {dataset}" if len(run.evaluations) > 1 else "")
    rows = [_seeds_row(names[key], aps) for key, aps in groups.items() if len(aps) > 1]
    for (folder, dataset), aps in groups.items():
        if folder.endswith("/frozen_loco"):
            control = groups.get((f"{folder.removesuffix('loco')}random", dataset), {})
            differences = {seed: aps[seed] - control[seed] for seed in aps if seed in control}
            if len(differences) > 1:
                rows.append(_seeds_row(f"{names[folder, dataset]} − frozen_random", differences, sign="+"))
    return rows


def _markdown(rows):
    """Rows (column -> text) as a Markdown table with aligned columns."""
    widths = {k: max(3, len(k), *(len(row[k]) for row in rows)) for k in rows[0]}
    right = {k for k in widths if "AP" in k or k in ("iterations", "time")}
    lines = [{k: k for k in widths}, {k: "-" * (w - 1) + (":" if k in right else "-") for k, w in widths.items()}]
    cells = ([f"{row[k]:>{w}}" if k in right else f"{row[k]:<{w}}" for k, w in widths.items()] for row in lines + rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def table_text(runs):
    """The AP table of the detection runs as Markdown (the page also has APs / m / l)."""
    rows = [{k: v for k, v in row.items() if " / " not in k} for row in detection_rows(runs)]
    return _markdown(rows) if rows else "no detection runs"


def seeds_text(runs):
    """The table of :func:`seeds_rows` as Markdown; empty if no run has several seeds."""
    rows = seeds_rows(runs)
    return _markdown(rows) if rows else ""

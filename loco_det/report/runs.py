"""Tables of runs: APs, classes, pretraining, seeds."""

import math
from pathlib import Path

from pretrain.files.text import for_terminal, shortened

from .seeds import seeds_rows
from .tables import (
    APS,
    NOTHING,
    Cell,
    ap,
    decoder_name,
    duration,
    finite,
    memory,
    one_decimal,
    terminal_table,
    without_empty,
)

OTHER = "another: see below"  # instead of a published row
LONGEST_NOTE = 600  # characters on a terminal


def _iterations(run):
    planned, done = run.key("SOLVER.MAX_ITER"), run.iterations
    if done is None:
        return NOTHING
    return Cell(f"{done} of {planned}" if planned and done < planned else str(done), done)


def _trained(run):
    """How much of the backbone learns."""
    level = run.results.get("freeze_at", run.key("MODEL.BACKBONE.FREEZE_AT", 0))
    if run.results.get("frozen", level >= 5):
        return "frozen"
    return "fine-tuned" if level < 1 else f"fine-tuned above {'stem' if level == 1 else f'res{level}'}"


def _schedule(run):
    iterations, images = run.key("SOLVER.MAX_ITER"), run.key("SOLVER.IMS_PER_BATCH")
    return run.results.get("schedule") or (f"{iterations} x {images} images" if iterations and images else NOTHING)


def detection_rows(runs):
    """One row (column -> text) for each detection run and test set; before its evaluation it comes from its config."""
    pretrained = {run.folder.resolve(): run for run in runs if run.kind == "pretraining"}
    rows = []
    for run in runs:
        weights = Path(str(run.results.get("weights") or run.key("MODEL.WEIGHTS") or NOTHING))
        source = pretrained.get(weights.resolve().parent)
        depth = run.key("MODEL.RESNETS.DEPTH")
        for dataset, tasks in run.evaluations.items() if run.kind == "detection" else ():
            cells = {
                "run": run.name,
                "state": run.state,
                "backbone": str(run.results.get("backbone") or run.key("MODEL.ENCODER") or "")
                or (f"ResNet-{depth}" if depth else NOTHING),
                "weights": "/".join(weights.parts[-2:]),
                "decoder": run.results.get("decoder") or (decoder_name(source) if source else None) or NOTHING,
                "trained": NOTHING if run.problem else _trained(run),
                "schedule": _schedule(run),
                "dataset": dataset,
            }
            published = {} if run.published.get("differences") else run.published
            for name, task in (("box", "bbox"), ("mask", "segm")):
                figure = published.get(f"{name}_ap") or math.nan
                cells[f"{name} AP"] = one_decimal(ap(tasks, task, "AP"))
                cells[f"published {name} AP"] = one_decimal(figure)
                cells[f"{name} AP − published"] = one_decimal(ap(tasks, task, "AP") - figure, "+")
            cells["published row"] = published.get("row") or (OTHER if run.published else NOTHING)
            cells |= {column: one_decimal(ap(tasks, *keys)) for column, keys in APS.items() if column not in cells}
            for name, task in (("box", "bbox"), ("mask", "segm")):
                sizes = (one_decimal(ap(tasks, task, f"AP{size}")) for size in "sml")
                cells[f"{name} APs / m / l"] = " / ".join(sizes)
            cells["iterations"], cells["time"] = _iterations(run), duration(run.seconds)
            cells["memory"] = memory(run.results.get("peak_memory"))
            rows.append(cells)
    published = [column for row in rows[:1] for column in row if "published" in column]
    return without_empty(rows, ["decoder", "memory", *published])


def published_sentence(row):
    """In what a run differs from a published row, in words.

    Args:
        row: ``Run.published``, with differences.
    """
    return f"differs from the published row ({row['row']}) in: {', '.join(row['differences'])}"


def published_notes(runs):
    """A sentence for each run that names a published row and is not that row."""
    named = [(run.name, run.published) for run in runs if run.kind == "detection"]
    return [f"{name} {published_sentence(row)}." for name, row in named if row.get("differences")]


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
            "time": duration(run.seconds),
            "encoder": str(run.key("MODEL.ENCODER", NOTHING)),
            "units": NOTHING if units is None else ", ".join("+".join(unit) for unit in units) or "none: random",
            "decoder": decoder_name(run) or NOTHING,
            "loss, first → last logged": change or NOTHING,
        }
        rows.append(cells)
    return rows


def class_rows(runs, dataset):
    """One row for each class of a data set, with the AP (of masks, if there are any) of each run that was analysed."""
    runs = [run for run in runs if run.analysis.get("dataset") == dataset]
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.analysis["classes"]):
        cells = {"class": name, "objects": NOTHING}
        for run in runs:
            task, part = list(run.analysis["tasks"].items())[-1]
            known = part["per_class"].get(name, {})
            cells["objects"] = Cell(str(known["objects"]), known["objects"]) if known else cells["objects"]
            cells[f"{run.name}: {'mask' if task == 'segm' else 'box'} AP"] = one_decimal(finite(known.get("AP")))
        rows.append(cells)
    return rows


def table_text(runs):
    """The AP table of the detection runs for a terminal (the page also has APs / m / l); empty if there is none."""
    rows = [{k: v for k, v in row.items() if " / " not in k} for row in detection_rows(runs)]
    notes = [shortened(for_terminal(note), LONGEST_NOTE) for note in published_notes(runs)]
    return "\n".join([terminal_table(rows), *notes]) if rows else ""


def pretraining_text(runs):
    """The table of :func:`pretraining_rows` for a terminal; empty if there is none."""
    rows = pretraining_rows(runs)
    return terminal_table(rows) if rows else ""


def seeds_text(runs):
    """The table of :func:`seeds_rows` for a terminal; empty if no run has several seeds."""
    rows = seeds_rows(runs)
    return terminal_table(rows) if rows else ""

"""Tables of runs: detection, classes, pretraining."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.files.tables import DURATION, MEMORY, PLAIN, PROGRESS, Column, Progress, Table, several
from pretrain.files.text import for_terminal, shortened

from ..runs.folder import Run
from .groups import group_notes, numbers
from .tables import APS, DIFFERENCE, PERCENT, ap, ap_column, minus, names, number, wrapped

OTHER = "another: see below"  # instead of a published row
LONGEST_NOTE = 600  # characters on a terminal
TASKS = (("box", "bbox"), ("mask", "segm"))
PUBLISHED = [
    [ap_column(f"{name} AP"), number(f"published {name} AP", PERCENT), number(f"{name} AP − published", DIFFERENCE)]
    for name, _ in TASKS
]
SIZES = [Column(f"{name} APs / m / l", several(PERCENT), style="small") for name, _ in TASKS]
COLUMNS = [
    *(
        Column("run"),
        *itertools.chain(*PUBLISHED),
        Column("group"),
        Column("state"),
        Column("backbone"),
        names("weights"),
    ),
    *(wrapped("decoder"), Column("trained"), names("schedule"), names("dataset"), names("published row")),
    *(ap_column(name) for name in APS if not name.endswith("AP")),
    *(*SIZES, number("iterations", PROGRESS), number("time", DURATION), number("memory", MEMORY)),
]
SAID_ONCE = (
    "state",
    "backbone",
    "decoder",
    "trained",
    "schedule",
    "dataset",
    "published row",
    "iterations",
)  # if equal
OPTIONAL = ["group", "decoder", "memory", *(column.name for column in COLUMNS if "published" in column.name)]


def _iterations(run: Run) -> Progress | None:
    return None if run.iterations is None else Progress(run.iterations, run.planned)


def _trained(run: Run) -> str | None:
    """How much of the backbone learns."""
    if run.problem:
        return None
    level, frozen = run.detection.freeze_at, run.detection.frozen
    level = run.key("MODEL.BACKBONE.FREEZE_AT", 0) if level is None else level
    if level >= 5 if frozen is None else frozen:
        return "frozen"
    if level > 0 and run.key("MODEL.TIMM.NAME"):  # of a plain ViT, a number of blocks
        return f"fine-tuned, FREEZE_AT {level}"
    return "fine-tuned" if level < 1 else f"fine-tuned above {'stem' if level == 1 else f'res{level}'}"


def _schedule(run: Run) -> str | None:
    """How long it was trained, after the name of a detector that is no Mask R-CNN."""
    iterations, images = run.key("SOLVER.MAX_ITER"), run.key("SOLVER.IMS_PER_BATCH")
    length = run.detection.schedule or (f"{iterations} x {images} images" if iterations and images else None)
    other = run.detection.detector not in (None, "Mask R-CNN")
    return f"{run.detection.detector}, {length}" if other and length else length


def _network(run: Run, pretrained: dict[Path, Run]) -> dict[str, str | None]:
    """What was trained, from which weights."""
    depth, weights = run.key("MODEL.RESNETS.DEPTH"), run.detection.weights or run.key("MODEL.WEIGHTS")
    source = pretrained.get(Path(weights).resolve().parent) if weights else None
    backbone = run.detection.backbone or run.key("MODEL.ENCODER") or (f"ResNet-{depth}" if depth else None)
    decoder = run.detection.decoder or (source.decoder if source else None)
    return {
        "backbone": backbone,
        "weights": "/".join(Path(weights).parts[-2:]) if weights else None,
        "decoder": decoder,
        "trained": _trained(run),
        "schedule": _schedule(run),
    }


def detection_table(runs: Sequence[Run]) -> Table:
    """A row for each detection run and test set; before its evaluation it comes from its config.

    Where there are several groups of runs that can be compared, each row has the number of its own.
    """
    pretrained = {run.folder.resolve(): run for run in runs if run.kind == "pretraining"}
    table, groups = Table(COLUMNS), numbers(runs)
    for run in (run for run in runs if run.kind == "detection"):
        group = groups.get(run.detection.comparability.key) if run.detection.comparability else None
        about: dict[str, Any] = {"run": run.name, "group": group, "state": run.state, **_network(run, pretrained)}
        about |= {"iterations": _iterations(run), "time": run.seconds, "memory": run.detection.peak_memory}
        row = run.published if run.published and run.published.comparable else None
        for dataset, tasks in run.evaluations.items():
            cells: dict[str, Any] = {column: ap(tasks, *keys) for column, keys in APS.items()}
            for name, task in TASKS:
                figure = getattr(row, f"{name}_ap", None) or None
                cells[f"published {name} AP"] = figure
                cells[f"{name} AP − published"] = minus(ap(tasks, task, "AP"), figure)
                cells[f"{name} APs / m / l"] = [ap(tasks, task, f"AP{size}") for size in "sml"]
            cells["published row"] = row.row if row else OTHER if run.published else None
            table.rows.append({**about, "dataset": dataset, **cells})
    return table.without_empty(OPTIONAL)


def published_sentence(row: str, differences: Sequence[str]) -> str:
    """In what a run differs from a published row, in words.

    Args:
        row: its name.
        differences: a text each.
    """
    return f"differs from the published row ({row}) in: {', '.join(differences)}"


def published_notes(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run that names a published row and is not that row."""
    named = [(run.name, run.published) for run in runs if run.kind == "detection" and run.published]
    return [f"{name} {published_sentence(row.row, row.differences)}." for name, row in named if row.differences]


def pretraining_table(runs: Sequence[Run]) -> Table:
    """A row for each pretraining run."""
    columns = [Column("run"), Column("state"), number("iterations", PROGRESS), number("time", DURATION)]
    columns.append(Column("encoder"))
    table = Table([*columns, wrapped("units"), wrapped("decoder"), wrapped("loss, first → last logged")])
    for run in (run for run in runs if run.kind == "pretraining"):
        units = run.key("MODEL.UNITS")
        losses = {name.removeprefix("loss_"): run.series(name)[1] for name in run.unit_losses}
        change = ", ".join(f"{name} {values[0]:.2f} → {values[-1]:.2f}" for name, values in losses.items())
        cells = {
            "run": run.name,
            "state": run.state,
            "iterations": _iterations(run),
            "time": run.seconds,
            "encoder": run.key("MODEL.ENCODER"),
            "units": None if units is None else ", ".join("+".join(unit) for unit in units) or "none: random",
            "decoder": run.decoder,
            "loss, first → last logged": change or None,
        }
        table.rows.append(cells)
    return table


def class_table(runs: Sequence[Run], dataset: str) -> Table:
    """A row for each class of a data set, with the AP (of masks, if there are any) of each run that was analysed.

    Args:
        runs: that can be compared.
        dataset: its name.
    """
    runs = [run for run in runs if run.analysis.get("dataset") == dataset]
    table = Table([Column("class"), number("objects", PLAIN)])
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        task, part = list(run.analysis["tasks"].items())[-1]
        key = str(run.folder)
        title = f"{run.name}: {'mask' if task == 'segm' else 'box'} AP"
        table.columns.append(Column(title, PERCENT, style="number", key=key))
        for name in run.analysis["classes"]:
            known = part["per_class"].get(name, {})
            cells = found.setdefault(name, {"class": name, "objects": None})
            cells |= {"objects": known.get("objects", cells["objects"]), key: known.get("AP")}
    table.rows = list(found.values())
    return table


def table_text(runs: Sequence[Run]) -> str:
    """The AP table of the detection runs for a terminal (the page also has APs / m / l); empty if there is none."""
    table = detection_table(runs).without([column.name for column in SIZES])
    notes = [shortened(for_terminal(note), LONGEST_NOTE) for note in (*group_notes(runs), *published_notes(runs))]
    return "\n".join([table.terminal(), *notes]) if table else ""


def pretraining_text(runs: Sequence[Run]) -> str:
    """The table of :func:`pretraining_table` for a terminal; empty if there is none."""
    table = pretraining_table(runs)
    return table.terminal() if table else ""

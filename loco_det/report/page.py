"""One page about one or more runs: what was run, tables of APs, curves, pictures. It needs nothing but a browser."""

import importlib.metadata
import os
import platform
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pretrain.files.atomic import write_whole
from pretrain.files.tables import Table
from pretrain.files.text import for_markdown

from ..runs.folder import Run
from .curves import ap_curves, detection_curves, joint_curves, pr_curves, pretraining_curves
from .groups import group_notes, together
from .html_page import Link, fill_in
from .pictures import Picture, embedded, few_colours, picture
from .readouts import SAID_ONCE as READOUTS_SAID_ONCE
from .readouts import readout_table
from .runs import SAID_ONCE, class_table, detection_table, pretraining_table, published_notes
from .seeds import seeds_table, seeds_verdicts
from .tables import without_equal

FIGURES = {  # that a run has drawn -> alternative text
    "analysis.png": "Analysis of {}: precision and recall, AP by size and class, confusions.",
    "probe.png": "Linear readout of {}: loss and test accuracy of each stage, accuracy by learning rate.",
}
PARTS = {"detection": "Detection and segmentation", "readouts": "Readouts", "pretraining": "Pretraining"}
MOST_LISTED = 30  # runs in the list of contents; the tables have links to all
CAPTIONS = {
    "ap": "AP in percent, averaged over IoU 0.50 to 0.95 unless it says 50 or 75 (that IoU only); s, m, l: objects "
    "below 32² pixels, up to 96², above. “–”: no such objects, not evaluated, or not known. Memory: peak of the main "
    "process.",
    "seeds": "AP in percent: mean ± standard deviation (of a sample, n − 1) over the seeds. “–”: some seeds have no "
    "such AP. Differences between runs are taken seed by seed.",
    "classes": "AP in percent by class, of masks where there are any.",
    "readouts": "Accuracies in percent. Learning rates are for 256 images; each stage has its own: chosen on the test "
    "images, it flatters the figure. kNN has a row for each k and temperature. “–”: not known, or does not apply; "
    "top-5 needs more than 5 classes.",
    "pretraining": "Losses at the first and the last line of each metrics.json.",
}


def write_report(runs: Sequence[Run], output_html: str | Path, output_markdown: str | Path | None = None) -> Path:
    """Write the page about some runs, whole or not at all.

    Args:
        runs: list of Run, as :func:`loco_det.runs.find.find_runs` returns it.
        output_html: the file; its folder is made if need be.
        output_markdown: the same tables as Markdown; None for none.

    Returns:
        Path: the page.

    Raises:
        ValueError: if there are no runs.
        OSError: if a file cannot be written.
    """
    if not runs:
        raise ValueError("no runs to report on")
    write_whole(output_html, render(runs))
    if output_markdown:
        write_whole(output_markdown, render_markdown(runs))
    return Path(output_html)


def render(runs: Sequence[Run]) -> str:
    """The page as a string of HTML; the arguments are as in :func:`write_report`."""
    pictures = embedded(runs)
    by_kind = [run for kind in ("pretraining", "readout", "detection") for run in runs if run.kind == kind]
    anchors = {run.name: f"#run-{place}" for place, run in enumerate(by_kind)}
    detection, pretraining = _detection(runs), pretraining_table(runs)
    readouts, readouts_shared = without_equal(readout_table(runs), READOUTS_SAID_ONCE)
    for table in (detection["table"], readouts, pretraining):
        link(table, anchors)
    tables = {"detection": detection["table"], "readouts": readouts, "pretraining": pretraining}
    parts = [(f"#{name}", PARTS[name]) for name, table in tables.items() if table]
    return fill_in(
        "report/page.html.j2",
        title=_title(runs),
        written=written(),
        captions=CAPTIONS,
        parts=[*parts, ("#runs", "Runs"), *((anchor, name) for name, anchor in list(anchors.items())[:MOST_LISTED])],
        detection=detection,
        readouts=readouts,
        readouts_shared=readouts_shared,
        pretraining=pretraining,
        runs=[{**_section(run, pictures), "anchor": anchors[run.name][1:]} for run in by_kind],
    )


def link(table: Table, anchors: dict[str, str]) -> None:
    """Make the first cells of a table links.

    Args:
        table: changed in place.
        anchors: text of a cell -> where it leads.
    """
    column = table.columns[0]
    for row in table.rows:
        if (name := column.value(row)) in anchors:
            row[column.key or column.name] = Link(name, anchors[name])


def render_markdown(runs: Sequence[Run]) -> str:
    """The tables of the page as Markdown."""
    parts = [f"# {for_markdown(_title(runs))}", written()]
    if table := detection_table(runs):
        notes = map(for_markdown, (*group_notes(runs), *published_notes(runs)))
        parts += ["## Detection and segmentation", table.markdown(), CAPTIONS["ap"], *notes]
    if table := seeds_table(runs):
        parts += ["### Over seeds", table.markdown(), CAPTIONS["seeds"], *map(for_markdown, seeds_verdicts(runs))]
    for dataset, group in _by_dataset([run for run in runs if run.kind == "detection"]).items():
        for part in together(group):
            if table := class_table(part, dataset):
                parts += [f"### AP by class, {for_markdown(dataset)}", table.markdown()]
    if table := readout_table(runs):
        parts += ["## Readouts", table.markdown(), CAPTIONS["readouts"]]
    if table := pretraining_table(runs):
        parts += ["## Pretraining", table.markdown()]
    return "\n\n".join(parts) + "\n"


def _detection(runs: Sequence[Run]) -> dict[str, Any]:
    """Tables and joint curves of the detection runs: losses of all on a data set, AP of those that can be compared."""
    found = [run for run in runs if run.kind == "detection"]
    groups: list[dict[str, Any]] = []
    for dataset, group in _by_dataset(found).items():
        pictures = _curves(group, dataset, LOSSES)
        groups.append({"dataset": dataset, "pictures": pictures, "classes": None})
        for part in together(group):
            groups.append(
                {
                    "dataset": dataset,
                    "pictures": _curves(part, dataset, AP_CURVES),
                    "classes": class_table(part, dataset),
                }
            )
    table, shared = without_equal(detection_table(runs), SAID_ONCE)
    return {
        "table": table,
        "shared": shared,
        "notes": [*group_notes(runs), *published_notes(runs)],
        "seeds": seeds_table(runs),
        "verdicts": seeds_verdicts(runs),
        "groups": groups,
    }


def _by_dataset(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found = defaultdict(list)
    for run in runs:
        found[run.analysis.get("dataset") or ", ".join(run.evaluations)].append(run)
    return found


# What has to be there for a curve, what is drawn, in words, and of how many runs at least
LOSSES = ((lambda run: run.series("total_loss")[0], joint_curves, "Losses by iteration", 2),)
AP_CURVES = (
    (lambda run: len(run.series("bbox/AP")[0]) > 1, ap_curves, "Box and mask AP by iteration", 2),
    (lambda run: run.analysis, pr_curves, "Precision by recall", 1),
)


def _curves(runs: Sequence[Run], dataset: str, kinds: tuple) -> list[Picture]:
    """The curves of runs on one data set, of the kinds in LOSSES or AP_CURVES."""
    pictures = []
    for there, draw, what, least in kinds:
        shown = [run for run in runs if there(run)]
        if len(shown) >= least:
            alt = f"{what} on {dataset} of {', '.join(run.name for run in shown)}"
            pictures.append(picture(draw(shown, dataset), alt))
    return pictures


def _section(run: Run, pictures: dict[Path, tuple[bytes, str]]) -> dict[str, Any]:
    """What the template prints of a run."""
    about = {"name": run.name, "folder": run.folder, "problem": run.problem}
    if run.problem:
        return about
    newest = max(p.stat().st_mtime for p in run.folder.iterdir() if p.name in ("metrics.json", "results.json"))
    return about | {
        "written": datetime.fromtimestamp(newest).strftime("%Y-%m-%d %H:%M"),
        "begun_only": run.kind == "detection" and not run.results,
        "failures": run.problems,
        "command": run.command,
        "pictures": _pictures(run, pictures),
        "left_out": sum(path not in pictures for path in run.pictures),
        "config": run.config_text,
    }


def _pictures(run: Run, pictures: dict[Path, tuple[bytes, str]]) -> list[Picture]:
    """A run's curves, the figures that it has drawn, and views or detections."""
    found, (_, losses) = [], run.series("total_loss")
    if losses:
        draw = pretraining_curves if run.kind == "pretraining" else detection_curves
        ends = f"the total loss ends at {losses[-1]:.3g} at iteration {run.iterations}"
        found.append(picture(draw(run), f"Losses of {run.name} by iteration; {ends}."))
    for name, alt in FIGURES.items():
        if data := few_colours(run.folder / name):
            found.append(picture(data, alt.format(run.name)))
    what = "Ground truth on the left, prediction on the right" if run.kind == "detection" else "Augmented views"
    for path in run.pictures:
        if path in pictures:
            data, mime = pictures[path]
            found.append(picture(data, f"{what}: {path.stem}", f"{what}. {path.name}", mime))
    return found


def _title(runs: Sequence[Run]) -> str:
    return f"Report: {runs[0].name}" if len(runs) == 1 else f"Report of {len(runs)} runs"


def written() -> str:
    """When the page was written, and where."""
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"Page written {now} on {_machine()}."


def _machine() -> str:
    """CPU, cores and torch version of the machine that writes the page, in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu or platform.machine()}, {cores} cores, torch {importlib.metadata.version('torch')}"

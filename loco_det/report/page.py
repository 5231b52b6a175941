"""One page about one or more runs: what was run, tables of APs, curves, pictures. It needs nothing but a browser."""

import importlib.metadata
import io
import os
import platform
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from PIL import Image

from pretrain.files.atomic import write_whole
from pretrain.files.images import UNREADABLE, read_image
from pretrain.files.text import for_html, for_markdown

from .curves import ap_curves, detection_curves, joint_curves, pr_curves, pretraining_curves
from .html_page import html_page, html_table, image
from .readouts import readout_rows
from .runs import class_rows, detection_rows, pretraining_rows, published_notes
from .seeds import seeds_rows
from .tables import markdown

PICTURES = 24  # of detections and views on a page; each run gets the same share, and one at least
PICTURE_BYTES = 3_000_000  # of all pictures on a page, as base64; curves and text come on top
FIGURES = {  # that a run has drawn -> alternative text
    "analysis.png": "Analysis of {}: precision and recall, AP by size and class, confusions.",
    "probe.png": "Linear readout of {}: loss and test accuracy of each stage, accuracy by learning rate.",
}
PICTURE_WIDTHS = (1600, 1100, 700, 450)  # pixels; the first with which the pictures stay within PICTURE_BYTES


def _compress(path, width):
    """(bytes, mime) of a picture at most ``width`` wide: JPEG, or the PNG as it is where that is smaller."""
    resized = Image.fromarray(read_image(path))
    if resized.width > width:
        resized = resized.resize((width, max(1, round(resized.height * width / resized.width))), Image.LANCZOS)
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=85, subsampling=0)  # full chroma: thin coloured boxes stay sharp
    if path.stat().st_size < buffer.tell() and resized.width <= width:
        return path.read_bytes(), "png"
    return buffer.getvalue(), "jpeg"


def _figure(path):
    """A figure such as analysis.png in few colours, which is a third of its size; None if there is none."""
    try:
        picture = Image.fromarray(read_image(path))
    except UNREADABLE:
        return None
    buffer = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _embed_pictures(runs):
    """Picture path -> (bytes, mime), as large as the page's size allows; unreadable or excess pictures are absent."""
    paths = [path for run in runs for path in run.pictures[: max(1, PICTURES // len(runs))]]
    for width in PICTURE_WIDTHS:
        found, total = {}, 0
        for path in paths:
            try:
                data = _compress(path, width)
            except UNREADABLE:  # a truncated or foreign file: the page does without
                continue
            total += len(data[0]) * 4 // 3
            if total > PICTURE_BYTES:
                break
            found[path] = data
        else:
            break
    return found


def _run_section(run, pictures):
    part = f"<h3>{for_html(run.name)}</h3>\n"
    if run.problem:
        return part + f'<p class="dim">{for_html(str(run.folder))}: {for_html(run.problem)}.</p>\n'
    newest = max(p.stat().st_mtime for p in run.folder.iterdir() if p.name in ("metrics.json", "results.json"))
    when = datetime.fromtimestamp(newest).strftime("%Y-%m-%d %H:%M")
    part += f'<p class="dim">{for_html(str(run.folder))}, last written {when}.'
    if run.kind == "detection" and not run.results:
        part += " No results.json: its training or evaluation has not ended."
    if run.problems:
        part += f" Not all of it has succeeded: {for_html('; '.join(run.problems))}."
    part += "</p>\n" + (f"<pre>{for_html(run.command, lines=True)}</pre>\n" if run.command else "")
    if run.series("total_loss")[0]:
        draw = pretraining_curves if run.kind == "pretraining" else detection_curves
        last = run.series("total_loss")[1][-1]
        alt = f"Losses of {run.name} by iteration; the total loss ends at {last:.3g} at iteration {run.iterations}."
        part += image(draw(run), "png", alt)
    for name, alt in FIGURES.items():
        if figure := _figure(run.folder / name):
            part += image(figure, "png", alt.format(run.name))
    for path in run.pictures:
        what = "Ground truth on the left, prediction on the right" if run.kind == "detection" else "Augmented views"
        if path in pictures:
            part += image(*pictures[path], f"{what}: {path.stem}", f"{what}. {path.name}")
    left_out = sum(path not in pictures for path in run.pictures)
    if left_out:
        part += f'<p class="dim">{left_out} more pictures in the folder are too many for this page or unreadable.</p>'
    if run.config_text:
        text = f'<pre class="config">{for_html(run.config_text, lines=True)}</pre>'
        part += f"<details><summary>config.yaml</summary>{text}</details>\n"
    return part


def _machine():
    """CPU, cores and torch version of the machine that writes the page, in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu or platform.machine()}, {cores} cores, torch {importlib.metadata.version('torch')}"


AP_CAPTION = (
    "AP in percent, averaged over IoU 0.50 to 0.95 unless it says 50 or 75 (that IoU only); s, m, l: objects below 32² "
    "pixels, up to 96², above. “–”: no such objects, not evaluated, or not known. Memory: "
    "peak of the main process."
)
SEEDS_CAPTION = (
    "AP in percent: mean ± standard deviation (of a sample, n − 1) over the seeds. “–”: some seeds have no such AP. "
    "Differences between runs are taken seed by seed."
)
READOUT_CAPTION = (
    "Accuracies in percent. Learning rates are for 256 images; each stage has its own: chosen on the test images, it "
    "flatters the figure. kNN has a row for each k and temperature. “–”: not known, or does not apply; top-5 needs "
    "more than 5 classes."
)


def _detection_section(runs):
    """Tables and joint curves of the detection runs."""
    body = "<h2>Detection and segmentation</h2>\n" + html_table(detection_rows(runs), AP_CAPTION)
    body += "".join(f"<p>{for_html(note)}</p>\n" for note in published_notes(runs))
    seeds = seeds_rows(runs)
    if seeds:
        body += "<h3>Over seeds</h3>\n" + html_table(seeds, SEEDS_CAPTION)
    by_dataset = defaultdict(list)
    for run in runs:
        by_dataset[run.analysis.get("dataset") or ", ".join(run.evaluations)].append(run)
    for dataset, group in by_dataset.items():
        kinds = (  # what has to be there for a curve, what is drawn, and in words
            (lambda run: run.series("total_loss")[0], joint_curves, "Total loss and mask loss by iteration", 2),
            (lambda run: len(run.series("bbox/AP")[0]) > 1, ap_curves, "Box and mask AP by iteration", 2),
            (lambda run: run.analysis, pr_curves, "Precision by recall", 1),
        )
        for there, draw, what, least in kinds:
            shown = [run for run in group if there(run)]
            if len(shown) >= least:
                alt = f"{what} on {dataset} of {', '.join(run.name for run in shown)}"
                body += image(draw(shown, dataset), "png", alt)
        classes = class_rows(group, dataset)
        if classes:
            table = html_table(classes, "AP in percent by class, of masks where there are any.")
            body += f"<details><summary>AP by class, {for_html(dataset)}</summary>{table}</details>\n"
    return body


def _title(runs):
    return f"Report: {runs[0].name}" if len(runs) == 1 else f"Report of {len(runs)} runs"


def _written():
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"Page written {now} on {_machine()}."


def render(runs):
    """The page as a string of HTML; the arguments are as in :func:`write_report`."""
    pretraining = [run for run in runs if run.kind == "pretraining"]
    detection = [run for run in runs if run.kind == "detection"]
    readouts = [run for run in runs if run.kind == "readout"]
    title = _title(runs)
    body = f'<h1>{for_html(title)}</h1>\n<p class="dim">{for_html(_written())}</p>\n'
    if detection:
        body += _detection_section(runs)
    if readouts:
        body += "<h2>Readouts</h2>\n" + html_table(readout_rows(runs), READOUT_CAPTION)
    if pretraining:
        caption = "Losses at the first and the last line of each metrics.json."
        body += "<h2>Pretraining</h2>\n" + html_table(pretraining_rows(runs), caption)
    pictures = _embed_pictures(runs)
    body += "<h2>Runs</h2>\n"
    body += '<p class="dim">Losses are medians over 20 iterations, as Detectron2 logs them.</p>\n'
    body += "".join(_run_section(run, pictures) for run in pretraining + readouts + detection)
    return html_page(title, body)


def render_markdown(runs):
    """The tables of the page as Markdown."""
    parts = [f"# {for_markdown(_title(runs))}", _written()]
    if rows := detection_rows(runs):
        parts += [
            "## Detection and segmentation",
            markdown(rows),
            AP_CAPTION,
            *map(for_markdown, published_notes(runs)),
        ]
    if rows := seeds_rows(runs):
        parts += ["### Over seeds", markdown(rows), SEEDS_CAPTION]
    for dataset in dict.fromkeys(run.analysis["dataset"] for run in runs if run.analysis.get("dataset")):
        parts += [f"### AP by class, {for_markdown(dataset)}", markdown(class_rows(runs, dataset))]
    if rows := readout_rows(runs):
        parts += ["## Readouts", markdown(rows), READOUT_CAPTION]
    if rows := pretraining_rows(runs):
        parts += ["## Pretraining", markdown(rows)]
    return "\n\n".join(parts) + "\n"


def write_report(runs, output_html, output_markdown=None):
    """Write the page about some runs, whole or not at all.

    Args:
        runs: list of Run, as :func:`loco_det.runs.find.find_runs` returns it.
        output_html: the file; its folder is made if need be.
        output_markdown: the same tables as Markdown; None for none.

    Returns:
        Path: the page.

    Raises:
        ValueError: if there are no runs.
    """
    if not runs:
        raise ValueError("no runs to report on")
    write_whole(output_html, render(runs))
    if output_markdown:
        write_whole(output_markdown, render_markdown(runs))
    return Path(output_html)

"""One page about one or more runs: what was run, tables of APs, curves, pictures. It needs nothing but a browser."""

import base64
import importlib.metadata
import io
import os
import platform
from collections import defaultdict
from datetime import datetime
from html import escape
from pathlib import Path

from PIL import Image

from loco_det.curves import detection_curves, joint_curves, pretraining_curves
from loco_det.runs import detection_rows, pretraining_rows, seeds_rows

PICTURE_BYTES = 5_000_000  # of all pictures on a page, as base64; curves and text come on top
PICTURE_WIDTHS = (1600, 1100, 700, 450)  # pixels; the first with which the pictures stay within PICTURE_BYTES

CSS = """
:root { color-scheme: light dark; --text: #1c1e21; --dim: #5c6370; --line: #d9dce1; --page: #fff; --soft: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --dim: #a0a6b0; --line: #3a3f47; --page: #16181c; --soft: #202329; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 80rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { margin-bottom: .2rem; } h2 { margin-top: 2.6rem; border-bottom: 1px solid var(--line); } h3 { margin-top: 2rem; }
.dim, figcaption { color: var(--dim); font-size: .9rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { background: var(--soft); white-space: normal; vertical-align: bottom; }
td.ap { text-align: right; font-weight: 600; }
.number { text-align: right; } .small { text-align: right; font-size: .78rem; color: var(--dim); }
.wrap, .name, tbody th { white-space: normal; }
.wrap { min-width: 8rem; } .name { min-width: 5rem; } tbody th { min-width: 6rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { background: var(--soft); padding: .7rem; overflow: auto; font-size: .82rem; } pre.config { max-height: 30rem; }
summary { cursor: pointer; }
"""


def _cell_class(column):
    if " / " in column:
        return "small"
    if column in ("decoder", "units", "loss, first → last logged"):
        return "wrap"
    if column in ("weights", "dataset"):
        return "name"
    return "ap" if column.endswith("AP") else "number" if "AP" in column or column in ("iterations", "time") else ""


def _breakable(text):
    """Long names of runs and files may break where their words end."""
    return escape(text).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _html_table(rows, caption):
    classes = {column: _cell_class(column) for column in rows[0]}
    head = "".join(f'<th scope="col" class="{c.replace("ap", "number")}">{escape(k)}</th>' for k, c in classes.items())
    body = ""
    for row in rows:
        (_, name), *rest = row.items()
        cells = "".join(f'<td class="{classes[k]}">{_breakable(v)}</td>' for k, v in rest)
        body += f'<tr><th scope="row">{_breakable(name)}</th>{cells}</tr>\n'
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    return f'<div class="wide">{table}</div>\n<p class="dim">{escape(caption)}</p>\n'


def _image(data, mime, alt, caption=""):
    uri = f"data:image/{mime};base64,{base64.b64encode(data).decode()}"
    caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{uri}" alt="{escape(alt)}">{caption}</figure>\n'


def _compress(path, width):
    """(bytes, mime) of a picture at most ``width`` wide: JPEG, or the PNG as it is where that is smaller."""
    with Image.open(path) as image:
        resized = image.convert("RGB")
    if resized.width > width:
        resized = resized.resize((width, max(1, round(resized.height * width / resized.width))), Image.LANCZOS)
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=85, subsampling=0)  # full chroma: thin coloured boxes stay sharp
    if path.stat().st_size < buffer.tell() and resized.width <= width:
        return path.read_bytes(), "png"
    return buffer.getvalue(), "jpeg"


def _embed_pictures(runs):
    """Picture path -> (bytes, mime), as large as the page's size allows; unreadable or excess pictures are absent."""
    paths = [path for run in runs for path in run.pictures]
    for width in PICTURE_WIDTHS:
        found, total = {}, 0
        for path in paths:
            try:
                data = _compress(path, width)
            except OSError:  # a truncated or foreign file: the page does without
                continue
            total += len(data[0]) * 4 // 3
            if total > PICTURE_BYTES:
                break
            found[path] = data
        else:
            break
    return found


def _run_section(run, pictures):
    part = f"<h3>{escape(run.name)}</h3>\n"
    newest = max(p.stat().st_mtime for p in run.folder.iterdir() if p.name in ("metrics.json", "results.json"))
    when = datetime.fromtimestamp(newest).strftime("%Y-%m-%d %H:%M")
    part += f'<p class="dim">{escape(str(run.folder))}, last written {when}.'
    if run.kind == "detection" and not run.results:
        part += " No results.json: its training or evaluation has not ended."
    part += "</p>\n" + (f"<pre>{escape(run.command)}</pre>\n" if run.command else "")
    if run.series("total_loss")[0]:
        draw = pretraining_curves if run.kind == "pretraining" else detection_curves
        last = run.series("total_loss")[1][-1]
        alt = f"Losses of {run.name} by iteration; the total loss ends at {last:.3g} at iteration {run.iterations}."
        part += _image(draw(run), "png", alt)
    for path in run.pictures:
        what = "Ground truth on the left, prediction on the right" if run.kind == "detection" else "Augmented views"
        if path in pictures:
            part += _image(*pictures[path], f"{what}: {path.stem}", f"{what}. {path.name}")
    left_out = sum(path not in pictures for path in run.pictures)
    if left_out:
        part += f'<p class="dim">{left_out} more pictures in the folder are too many for this page or unreadable.</p>'
    if run.config_text:
        text = f'<pre class="config">{escape(run.config_text)}</pre>'
        part += f"<details><summary>config.yaml</summary>{text}</details>\n"
    return part


def _machine():
    """CPU, cores and torch version of the machine that writes the page, in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu or platform.machine()}, {cores} cores, torch {importlib.metadata.version('torch')}"


def render(runs):
    """The page as a string of HTML; the arguments are as in :func:`write_report`."""
    pretraining = [run for run in runs if run.kind == "pretraining"]
    detection = [run for run in runs if run.kind == "detection"]
    title = f"Report: {runs[0].name}" if len(runs) == 1 else f"Report of {len(runs)} runs"
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    body = f'<h1>{escape(title)}</h1>\n<p class="dim">Page written {now} on {escape(_machine())}.</p>\n'
    if detection:
        caption = (
            "AP in percent, averaged over IoU 0.50 to 0.95 unless it says 50 (IoU 0.50 only); s, m, l: objects below "
            "32² pixels, up to 96², above. “–”: no such objects, or not evaluated."
        )
        body += "<h2>Detection and segmentation</h2>\n" + _html_table(detection_rows(runs), caption)
    seeds = seeds_rows(runs)
    if seeds:
        caption = (
            "AP in percent: mean ± standard deviation (of a sample, n − 1) over the seeds. “–”: some seeds have no "
            "such AP. Differences are taken seed by seed."
        )
        body += "<h3>Over seeds</h3>\n" + _html_table(seeds, caption)
    by_dataset = defaultdict(list)
    for run in detection:
        if run.series("total_loss")[0]:
            by_dataset[", ".join(run.evaluations)].append(run)
    for dataset, group in by_dataset.items():
        if len(group) > 1:
            alt = f"Total loss and mask loss by iteration on {dataset} of " + ", ".join(run.name for run in group)
            body += _image(joint_curves(group, dataset), "png", alt)
    if pretraining:
        caption = "Losses at the first and the last line of each metrics.json."
        body += "<h2>Pretraining</h2>\n" + _html_table(pretraining_rows(runs), caption)
    pictures = _embed_pictures(runs)
    body += "<h2>Runs</h2>\n"
    body += '<p class="dim">Losses are medians over 20 iterations, as Detectron2 logs them.</p>\n'
    body += "".join(_run_section(run, pictures) for run in pretraining + detection)
    head = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    head += f"<title>{escape(title)}</title>\n<style>{CSS}</style>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}</body>\n</html>\n'


def write_report(runs, output_html):
    """Write the page about some runs, whole or not at all.

    Args:
        runs: list of Run, as :func:`loco_det.runs.find_runs` returns it.
        output_html: the file; its folder is made if need be.

    Returns:
        Path: the file.

    Raises:
        ValueError: if there are no runs.
    """
    if not runs:
        raise ValueError("no runs to report on")
    page = render(runs)
    output = Path(output_html)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return output

"""One page about one or more runs: what was run, a table of APs, curves, pictures. It needs nothing but a browser.

A run is a folder of tools/pretrain.py or tools/train_net.py. Reading a run, drawing its curves and writing the page
are separate steps, so that the table can be printed without the page.
"""

import base64
import importlib.metadata
import io
import json
import math
import os
import platform
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

PICTURE_BYTES = 5_000_000  # of all pictures on a page, as base64; curves and text come on top
PICTURE_WIDTHS = (1600, 1100, 700, 450)  # pixels; the first with which the pictures stay within PICTURE_BYTES
# Okabe and Ito, safe for the colour-blind
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
NOTHING = "–"


@dataclass
class Run:
    """What a run folder holds.

    Attributes:
        folder: the folder.
        name: short name in tables and legends.
        kind: "pretraining" or "detection".
        config: config.yaml as a dict, empty if there is none; ``config_text`` is the file as it is.
        metrics: list of dicts, ascending by "iteration" (counted from 0), as Detectron2's JSONWriter names things.
        results: results.json of a detection run, empty before its evaluation.
        command: text of command.txt or commands, perhaps empty.
        pictures: paths of views.png and pictures/*.png.
    """

    folder: Path
    name: str
    kind: str
    config: dict
    config_text: str
    metrics: list
    results: dict
    command: str
    pictures: list

    def key(self, path, default=None):
        """Value of a key of the config such as "SOLVER.MAX_ITER"."""
        value = self.config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def series(self, name):
        """Iterations (counted from 1) and values of a metric."""
        points = [(m["iteration"] + 1, m[name]) for m in self.metrics if isinstance(m.get(name), int | float)]
        return [p[0] for p in points], [p[1] for p in points]

    @property
    def iterations(self):
        """Iterations trained; None if unknown."""
        return self.results.get("iteration") or (self.series("data_time")[0] or [None])[-1]

    @property
    def seconds(self):
        """As the run recorded it, else from the time per iteration in its metrics; None if unknown."""
        if self.results.get("seconds"):
            return self.results["seconds"]
        ends, times = self.series("time")
        return sum(t * (b - a) for t, a, b in zip(times, [0, *ends], ends, strict=False)) or None


def read_run(folder):
    """Read a run folder; whatever is missing or was torn by an interruption is left out.

    Returns:
        Run

    Raises:
        FileNotFoundError: if the folder holds neither metrics.json nor results.json.
        ValueError: if results.json, which is written in one go, is damaged.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("metrics.json", "results.json")):
        raise FileNotFoundError(f"{folder} is not a run: it has neither metrics.json nor results.json")
    results = {}
    if (folder / "results.json").is_file():
        try:
            results = json.loads((folder / "results.json").read_text())
            results["results"].get("bbox")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'results.json'} is damaged ({error!r}): evaluate that run again") from error
    text = _text(folder / "config.yaml")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    config = config if isinstance(config, dict) else {}
    metrics = _read_metrics(folder / "metrics.json")
    detection = results or "loss_mask" in {k for m in metrics for k in m} or "META_ARCHITECTURE" in text
    return Run(
        folder=folder,
        name=folder.resolve().name,
        kind="detection" if detection else "pretraining",
        config=config,
        config_text=text,
        metrics=metrics,
        results=results,
        command=(_text(folder / "command.txt") or _text(folder / "commands")).strip(),
        pictures=[*folder.glob("views.png"), *sorted((folder / "pictures").glob("*.png"))],
    )


def _text(path):
    return path.read_text(errors="replace") if path.is_file() else ""


def _read_metrics(path):
    """Lines of a metrics.json, merged by iteration. A line that a kill tore is skipped; after a resume that went back
    to an earlier checkpoint, what had been logged beyond it is dropped."""
    merged, last = {}, -1
    for line in _text(path).splitlines():
        try:
            entry = json.loads(line)
            iteration = int(entry["iteration"])
        except (ValueError, KeyError, TypeError):
            continue
        if "data_time" in entry:  # an evaluation's line may come out of turn, a training step's only after a resume
            if iteration < last:
                merged = {i: m for i, m in merged.items() if i < iteration}
            last = iteration
        merged.setdefault(iteration, {}).update(entry)
    return [merged[i] for i in sorted(merged)]


def find_runs(roots):
    """Read every run at or beneath the given folders.

    Args:
        roots: a folder or a list of folders.

    Returns:
        list of Run, in the order of ``roots`` and of their paths; names are relative to what they have in common.

    Raises:
        FileNotFoundError: if a folder is not there or holds no run.
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


# ---- tables


def _duration(seconds):
    if seconds is None:
        return NOTHING
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _ap(tasks, task, key):
    value = tasks.get(task, {}).get(key)
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.1f}"


def _iterations(run):
    planned = run.key("SOLVER.MAX_ITER")
    done = run.iterations
    return NOTHING if done is None else f"{done} of {planned}" if planned and done < planned else str(done)


def _decoder(run):
    """The decoder that a pretraining run looked through; published comparisons were unfair for not saying it."""
    blocks, hidden = run.key("MODEL.DECODER.CONV_BLOCKS"), run.key("MODEL.DECODER.HIDDEN_DIM")
    if blocks is None or run.key("MODEL.UNITS") == []:  # no unit, no loss: the random control
        return NOTHING
    conv = f"{blocks} conv block{'s' * (blocks != 1)}{', downsampling' if run.key('MODEL.DECODER.DOWNSAMPLE') else ''}"
    return f"{conv if blocks else 'no conv block'}, MLP {hidden}-{run.key('MODEL.DECODER.OUT_DIM')}"


def _evaluations(run):
    """Dataset -> task ("bbox", "segm") -> metrics of a detection run; without metrics before its evaluation."""
    results = run.results.get("results", {})
    if any("bbox" in value or "segm" in value for value in results.values()):  # several test sets
        return results
    return {str(run.results.get("dataset") or (run.key("DATASETS.TEST") or [NOTHING])[0]): results}


def _detection_row(run, dataset, tasks, pretrained):
    """Cells of a detection run; before its evaluation they come from its config."""
    weights = str(run.results.get("weights") or run.key("MODEL.WEIGHTS") or "random")
    source = pretrained.get(Path(weights).resolve().parent)
    depth = run.key("MODEL.RESNETS.DEPTH")
    frozen = run.results.get("frozen", run.key("MODEL.BACKBONE.FREEZE_AT", 0) >= 5)
    cells = {
        "run": run.name,
        "backbone": str(run.results.get("backbone") or (f"ResNet-{depth}" if depth else NOTHING)),
        "weights": "/".join(Path(weights).parts[-2:]),
        "decoder": str(run.results.get("decoder") or (_decoder(source) if source else NOTHING)),
        "trained": "frozen" if frozen else "fine-tuned",
        "dataset": dataset,
        "iterations": _iterations(run),
        "time": _duration(run.seconds),
    }
    for name, task in (("box", "bbox"), ("mask", "segm")):
        cells |= {f"{name} AP": _ap(tasks, task, "AP"), f"{name} AP50": _ap(tasks, task, "AP50")}
    for name, task in (("box", "bbox"), ("mask", "segm")):
        cells[f"{name} APs / m / l"] = " / ".join(_ap(tasks, task, f"AP{size}") for size in "sml")
    return cells


def _detection_rows(runs):
    pretrained = {run.folder.resolve(): run for run in runs if run.kind == "pretraining"}
    detection = [run for run in runs if run.kind == "detection"]
    rows = [_detection_row(run, *item, pretrained) for run in detection for item in _evaluations(run).items()]
    if all(row["decoder"] == NOTHING for row in rows):
        for row in rows:
            del row["decoder"]
    return rows


def _pretraining_rows(runs):
    rows = []
    for run in runs:
        if run.kind != "pretraining":
            continue
        units = run.key("MODEL.UNITS")
        units = NOTHING if units is None else ", ".join("+".join(unit) for unit in units) or "none: random"
        losses = {name: run.series(name)[1] for name in _unit_losses(run)}
        change = ", ".join(f"{n.removeprefix('loss_')} {v[0]:.2f} → {v[-1]:.2f}" for n, v in losses.items())
        cells = (
            run.key("MODEL.ENCODER", NOTHING),
            units,
            _decoder(run),
            change or NOTHING,
        )
        names = ("encoder", "units", "decoder", "loss, first → last logged")
        first = {"run": run.name, "iterations": _iterations(run), "time": _duration(run.seconds)}
        rows.append(first | {name: str(cell) for name, cell in zip(names, cells, strict=True)})
    return rows


def table_text(runs):
    """The AP table of the detection runs as Markdown with aligned columns (the page also has APs / m / l)."""
    rows = [{k: v for k, v in row.items() if " / " not in k} for row in _detection_rows(runs)]
    if not rows:
        return "no detection runs"
    widths = {k: max(3, len(k), *(len(row[k]) for row in rows)) for k in rows[0]}
    right = {k for k in widths if "AP" in k or k in ("iterations", "time")}
    lines = [{k: k for k in widths}, {k: "-" * (w - 1) + (":" if k in right else "-") for k, w in widths.items()}]
    cells = ([f"{row[k]:>{w}}" if k in right else f"{row[k]:<{w}}" for k, w in widths.items()] for row in lines + rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


# ---- curves


def _unit_losses(run):
    """Names of the units' losses, from the image upwards."""
    return sorted({k for m in run.metrics for k in m if k.startswith("loss_")})


def _plot(axes, run, names, labels, title, ylabel, first_color=0):
    for i, (name, label) in enumerate(zip(names, labels, strict=True), first_color):
        x, y = run.series(name)
        # Beyond the palette: the same colours dashed. A single point would be invisible without a marker
        style = "-" if i < len(COLORS) else "--"
        axes.plot(x, y, style, color=COLORS[i % len(COLORS)], label=label, marker="o" if len(x) < 6 else None, ms=4)
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_ylabel(ylabel)


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def pretraining_curves(run):
    """PNG bytes: the loss of every unit, their sum (if there are several) and the learning rate, by iteration."""
    units = _unit_losses(run)
    panels = ["units", "total", "lr"] if len(units) > 1 else ["units", "lr"]
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 2.6 + 1.2 * len(panels)), layout="constrained")
        ratios = [3] + [1] * (len(panels) - 1)
        axes = dict(zip(panels, figure.subplots(len(panels), 1, sharex=True, height_ratios=ratios), strict=True))
        labels = [f"unit up to {name.removeprefix('loss_')}" for name in units]
        _plot(axes["units"], run, units, labels, "Loss of each unit", "loss (nats)")
        batch = run.key("SOLVER.IMS_PER_BATCH")
        if batch:  # InfoNCE of embeddings that all look alike: ln of the number of candidates
            axes["units"].axhline(math.log(2 * batch - 1), color="0.5", ls=":", label="chance, ln(2·batch − 1)")
        axes["units"].legend(frameon=False)
        if "total" in axes:
            _plot(axes["total"], run, ["total_loss"], ["total"], "Sum of the units", "loss (nats)", len(COLORS) - 1)
        _plot(axes["lr"], run, ["lr"], ["lr"], "Learning rate", "rate", len(COLORS) - 1)
        axes["lr"].set_xlabel("iteration")
        return _png(figure)


def detection_curves(run):
    """PNG bytes: the losses and, if evaluated more than once, box and mask AP, by iteration."""
    losses = ["total_loss", *_unit_losses(run)]
    aps = [key for key in ("bbox/AP", "segm/AP") if len(run.series(key)[0]) > 1]
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        axes = figure.subplots(1, 2, width_ratios=[3, 2]) if aps else [figure.subplots()]
        _plot(axes[0], run, losses, [n.replace("_", " ") for n in losses], "Training losses", "loss")
        axes[0].legend(frameon=False, fontsize=8.5, ncols=2)
        if aps:
            labels = ["box AP" if key == "bbox/AP" else "mask AP" for key in aps]
            _plot(axes[1], run, aps, labels, "Evaluation", "AP (%)")
            axes[1].set_ylim(bottom=0)
            axes[1].legend(frameon=False)
        for ax in axes:
            ax.set_xlabel("iteration")
            ax.set_ylim(bottom=0)
        return _png(figure)


def joint_curves(runs, dataset):
    """PNG bytes: total and mask loss of several detection runs on the same dataset, by iteration."""
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 3.8 + 0.22 * math.ceil(len(runs) / 3)), layout="constrained")
        axes = figure.subplots(1, 2)
        for ax, name, title in zip(axes, ("total_loss", "loss_mask"), ("Total loss", "Mask loss"), strict=True):
            for i, run in enumerate(runs):
                _plot(ax, run, [name], [run.name], f"{title}, {dataset}", "loss", first_color=i)
            ax.set_xlabel("iteration")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        return _png(figure)


# ---- the page

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


def _html_table(rows, caption):
    def cell_class(name):
        if " / " in name:
            return "small"
        if name in ("decoder", "units", "loss, first → last logged"):
            return "wrap"
        if name in ("weights", "dataset"):
            return "name"
        return "ap" if name.endswith("AP") else "number" if "AP" in name or name in ("iterations", "time") else ""

    def breakable(text):  # long names of runs and files may break where their words end
        return escape(text).replace("_", "_<wbr>").replace("/", "/<wbr>")

    head = "".join(f'<th scope="col" class="{cell_class(k).replace("ap", "number")}">{escape(k)}</th>' for k in rows[0])
    body = ""
    for row in rows:
        (_, name), *rest = row.items()
        cells = "".join(f'<td class="{cell_class(k)}">{breakable(v)}</td>' for k, v in rest)
        body += f'<tr><th scope="row">{breakable(name)}</th>{cells}</tr>\n'
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
    lines = _text(Path("/proc/cpuinfo")).splitlines()
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
        body += "<h2>Detection and segmentation</h2>\n" + _html_table(_detection_rows(runs), caption)
    by_dataset = defaultdict(list)
    for run in detection:
        if run.series("total_loss")[0]:
            by_dataset[", ".join(_evaluations(run))].append(run)
    for dataset, group in by_dataset.items():
        if len(group) > 1:
            alt = f"Total loss and mask loss by iteration on {dataset} of " + ", ".join(run.name for run in group)
            body += _image(joint_curves(group, dataset), "png", alt)
    if pretraining:
        caption = "Losses at the first and the last line of each metrics.json."
        body += "<h2>Pretraining</h2>\n" + _html_table(_pretraining_rows(runs), caption)
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
        runs: list of Run, or a folder or a list of folders at or beneath which they lie.
        output_html: the file; its folder is made if need be.

    Returns:
        Path: the file.

    Raises:
        FileNotFoundError, ValueError: as :func:`find_runs` and :func:`read_run`.
    """
    if isinstance(runs, str | Path) or not all(isinstance(run, Run) for run in runs):
        runs = find_runs(runs)
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

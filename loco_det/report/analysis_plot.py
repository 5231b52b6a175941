"""The figure of an analysis: precision and recall, sizes, classes, confusions."""

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from pretrain.files.text import for_figure

from ..evaluation.analysis import CURVES, most_confused
from .curves import COLORS, STYLE
from .tables import finite

MOST_CLASSES = 24  # as bars; of more, the best and the worst are drawn
MOST_IN_MATRIX = 12  # a larger confusion matrix is unreadable: then the most confused pairs
SHORT = 22  # columns of a class's name
TASKS = {"bbox": "box", "segm": "mask"}


def draw_analysis(analysis: dict, title: str = "") -> Figure:
    """A figure of what :func:`loco_det.evaluation.analysis.analyze` returned.

    Returns:
        matplotlib Figure: precision-recall curves, AP and recall by size, AP by class, and the confusion matrix or, for
        many classes, the most confused pairs.
    """
    with rc_context(STYLE):
        rows = min(len(analysis["classes"]), MOST_CLASSES)
        figure = Figure(figsize=(12, 5.5 + 0.22 * max(rows, 12)), layout="constrained")
        (curves, sizes), (classes, confusion) = figure.subplots(2, 2, height_ratios=[4, 1.5 + 0.22 * max(rows, 12)])
        figure.suptitle(title, fontsize=11)
        _draw_curves(curves, analysis)
        _draw_sizes(sizes, analysis)
        _draw_classes(classes, analysis)
        if len(analysis["classes"]) <= MOST_IN_MATRIX:
            _draw_matrix(confusion, analysis)
        else:
            _draw_pairs(confusion, analysis)
    return figure


def _title(axes, text):
    axes.set_title(text, loc="left", fontsize=10.5, fontweight="bold")


def _draw_curves(axes, analysis):
    for (task, part), style in zip(analysis["tasks"].items(), ("-", "--"), strict=False):
        for name, color in zip(CURVES, COLORS, strict=False):
            values = [finite(v) for v in part["curves"][name]]
            axes.plot(part["curves"]["recall"], values, style, color=color, label=f"{TASKS[task]}, IoU {name}")
    axes.set(xlabel="recall", ylabel="precision (%), mean over classes", xlim=(0, 1), ylim=(0, 101))
    axes.legend(frameon=False, fontsize=8.5, ncols=len(analysis["tasks"]))
    _title(axes, "Precision and recall")


def _draw_sizes(axes, analysis):
    sizes = list(next(iter(analysis["tasks"].values()))["sizes"])
    bars = [(task, key) for task in analysis["tasks"] for key in ("AP", "AR")]
    width = 0.8 / len(bars)
    for i, (task, key) in enumerate(bars):
        values = [finite(analysis["tasks"][task]["sizes"][size][key]) for size in sizes]
        places = np.arange(len(sizes)) + (i - (len(bars) - 1) / 2) * width
        drawn = axes.bar(places, np.nan_to_num(values), width, color=COLORS[i], label=f"{TASKS[task]} {key}")
        axes.bar_label(drawn, ["–" if np.isnan(v) else f"{v:.0f}" for v in values], fontsize=8)
    axes.set_xticks(range(len(sizes)), ["all", "small\n< 32²", "medium\n< 96²", "large"])
    axes.set_ylabel("%")
    axes.grid(axis="x", visible=False)
    axes.legend(frameon=False, fontsize=8.5, ncols=2)
    axes.margins(y=0.25)
    axes.set_ylim(0, max(axes.get_ylim()[1], 1))  # also where nothing was found
    _title(axes, "AP and recall (AR, 100 detections an image) by size")


def _draw_classes(axes, analysis):
    part = list(analysis["tasks"].values())[-1]["per_class"]  # masks, if there are any
    rows = [(name, finite(v["AP"]), v["objects"]) for name, v in part.items() if v["AP"] is not None]
    rows.sort(key=lambda row: -row[1])
    title = f"{TASKS[list(analysis['tasks'])[-1]]} AP by class"
    if len(rows) > MOST_CLASSES:
        title += f": the {MOST_CLASSES // 2} best and worst of {len(rows)}"
        rows = rows[: MOST_CLASSES // 2] + rows[-MOST_CLASSES // 2 :]
    drawn = axes.barh(range(len(rows)), [row[1] for row in rows], color=COLORS[0])
    axes.bar_label(drawn, [f" {ap:.1f}  ({n})" for _, ap, n in rows], fontsize=8)
    axes.set_yticks(range(len(rows)), [for_figure(row[0], SHORT) for row in rows], fontsize=8.5)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlim(0, max(axes.get_xlim()[1], 1))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("AP (%), in brackets the number of objects")
    _title(axes, title[0].upper() + title[1:])


def _summary(part):
    """Caption of the confusions."""
    return (
        f"at score ≥ {part['score']:g}, box IoU ≥ {part['iou']:g}: {part['right']} right, {part['confused']} taken for "
        f"another class,\n{part['missed']} missed, {part['spurious']} spurious"
    )


def _draw_matrix(axes, analysis):
    matrix = np.array(analysis["confusion"]["matrix"])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (t, d), count in np.ndenumerate(matrix):
        if count:
            color = "white" if shares[t, d] > 0.6 else "black"
            axes.text(d, t, count, ha="center", va="center", fontsize=8, color=color)
    names = [for_figure(name, SHORT) for name in analysis["classes"]]
    axes.set_xticks(range(len(matrix)), [*names, "missed"], rotation=40, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(matrix)), [*names, "spurious"], fontsize=8.5)
    axes.set(xlabel=f"detected as\n{_summary(analysis['confusion'])}", ylabel="true class")
    axes.grid(visible=False)
    _title(axes, "Confusions (colour: share of the row)")


def _draw_pairs(axes, analysis):
    pairs = most_confused(analysis)
    drawn = axes.barh(range(len(pairs)), [n for _, _, n, _ in pairs], color=COLORS[1])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.bar_label(drawn, [f" {n}  ({share:.0%})" for _, _, n, share in pairs], fontsize=8)
    names = [f"{for_figure(true, SHORT)} → {for_figure(detected, SHORT)}" for true, detected, _, _ in pairs]
    axes.set_yticks(range(len(pairs)), names, fontsize=8.5)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.grid(axis="y", visible=False)
    if not pairs:
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
    axes.set_xlabel(f"objects (share of the true class)\n{_summary(analysis['confusion'])}")
    _title(axes, "Most confused pairs: true class → detected as")

"""Curves of runs by iteration, as PNG."""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pretrain.files.figures import png
from pretrain.files.text import for_figure

from ..runs.folder import Run
from .tables import finite

# Okabe and Ito, safe for the colour-blind
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def _plot(axes, run, names, labels, title, ylabel, first_color=0):
    for i, (name, label) in enumerate(zip(names, labels, strict=True), first_color):
        x, y = run.series(name)
        # Beyond the palette: the same colours dashed. A single point would be invisible without a marker
        style = "-" if i < len(COLORS) else "--"
        few = len(x) < 6
        color, marker = COLORS[i % len(COLORS)], "o" if few else None
        axes.plot(x, y, style, color=color, label=label, marker=marker, ms=4, clip_on=not few)  # whole, also at 0
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_ylabel(ylabel)


def _from_zero(axes):
    """Let the y axis begin at 0 and leave room for markers above the largest value."""
    top = axes.dataLim.y1
    axes.set_ylim(0, 1.06 * top if math.isfinite(top) and top > 0 else 1)


def _by_iteration(axes):
    """Label the x axis, with whole numbers."""
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))


def pretraining_curves(run: Run) -> bytes:
    """PNG bytes: the loss of every unit, their sum (if there are several) and the learning rate, by iteration."""
    units = run.unit_losses
    panels = ["units", "total", "lr"] if len(units) > 1 else ["units", "lr"]
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 2.6 + 1.2 * len(panels)), layout="constrained")
        ratios = [3] + [1] * (len(panels) - 1)
        axes = dict(zip(panels, figure.subplots(len(panels), 1, sharex=True, height_ratios=ratios), strict=True))
        labels = [f"unit up to {for_figure(name.removeprefix('loss_'))}" for name in units]
        contrastive, batch = run.key("LOSS.NAME", "info_nce") == "info_nce", run.key("SOLVER.IMS_PER_BATCH")
        unit_of_loss = "loss (nats)" if contrastive else "loss"
        _plot(axes["units"], run, units, labels, "Loss of each unit", unit_of_loss)
        if batch and contrastive:  # of embeddings that all look alike: ln of candidates
            chance = (run.key("LOSS.SCALE", 1)) * math.log(2 * batch - 1)
            axes["units"].axhline(chance, color="0.5", ls=":", label="chance, ln(2·batch − 1)")
        axes["units"].legend(frameon=False)
        if "total" in axes:
            _plot(axes["total"], run, ["total_loss"], ["total"], "Sum of the units", unit_of_loss, len(COLORS) - 1)
        _plot(axes["lr"], run, ["lr"], ["lr"], "Learning rate", "rate", len(COLORS) - 1)
        _by_iteration(axes["lr"])
        return png(figure)


def detection_curves(run: Run) -> bytes:
    """PNG bytes: the losses and, if evaluated more than once, box and mask AP, by iteration."""
    losses = ["total_loss", *run.unit_losses]
    aps = [key for key in ("bbox/AP", "segm/AP") if len(run.series(key)[0]) > 1]
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        axes = figure.subplots(1, 2, width_ratios=[3, 2]) if aps else [figure.subplots()]
        _plot(axes[0], run, losses, [for_figure(n.replace("_", " ")) for n in losses], "Training losses", "loss")
        axes[0].legend(frameon=False, fontsize=8.5, ncols=2)
        if aps:
            labels = ["box AP" if key == "bbox/AP" else "mask AP" for key in aps]
            _plot(axes[1], run, aps, labels, "Evaluation", "AP (%)")
            axes[1].legend(frameon=False)
        for ax in axes:
            _by_iteration(ax)
            _from_zero(ax)
        return png(figure)


def ap_curves(runs: Sequence[Run], dataset: str) -> bytes:
    """PNG bytes: box and mask AP of several detection runs on the same dataset, by iteration."""
    return _joint(runs, (("bbox/AP", "Box AP"), ("segm/AP", "Mask AP")), dataset, "AP (%)")


def joint_curves(runs: Sequence[Run], dataset: str) -> bytes:
    """PNG bytes: total and mask loss of several detection runs on the same dataset, by iteration."""
    return _joint(runs, (("total_loss", "Total loss"), ("loss_mask", "Mask loss")), dataset, "loss")


def _joint(runs, panels, dataset, ylabel):
    known = [panel for panel in panels if any(run.series(panel[0])[0] for run in runs)]  # a light head has no masks
    panels = known or panels[:1]
    with _side_by_side(len(runs), len(panels)) as (figure, axes):
        for ax, (name, title) in zip(axes, panels, strict=True):
            for i, run in enumerate(runs):
                _plot(ax, run, [name], [for_figure(run.name)], f"{title}, {for_figure(dataset)}", ylabel, first_color=i)
            _by_iteration(ax)
            _from_zero(ax)
    return png(figure)


def pr_curves(runs: Sequence[Run], dataset: str) -> bytes:
    """PNG bytes: precision by recall of several analysed runs on the same dataset, at IoU 0.5 and as the mean over IoU
    0.5 to 0.95 (its area is the AP); of masks where there are any.
    """
    with _side_by_side(len(runs)) as (figure, axes):
        for ax, name in zip(axes, ("0.50", "0.50:0.95"), strict=True):
            for i, run in enumerate(runs):
                task, part = list(run.analysis["tasks"].items())[-1]
                values = [finite(v) for v in part["curves"][name]]
                style, color = "-" if i < len(COLORS) else "--", COLORS[i % len(COLORS)]
                label = f"{for_figure(run.name)} ({'mask' if task == 'segm' else 'box'})"
                ax.plot(part["curves"]["recall"], values, style, color=color, label=label)
            title = f"Precision and recall at IoU {name}, {for_figure(dataset)}"
            ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
            ax.set(xlabel="recall", ylabel="precision (%), mean over classes", xlim=(0, 1))
            _from_zero(ax)
    return png(figure)


@contextmanager
def _side_by_side(count, panels=2):
    """Figure and its axes, to be filled; below them a legend of ``count`` runs."""
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 3.8 + 0.22 * math.ceil(count / 3)), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        yield figure, axes
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)

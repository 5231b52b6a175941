"""Curves of a run, from its metrics.json: loss of each unit, kNN accuracy of each stage, learning rate."""

import logging
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.events import EventWriter
from fvcore.common.config import CfgNode
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files.atomic import write_whole
from ..files.figures import quiet_fonts
from ..files.metrics import Metrics
from ..files.text import for_figure

logger = logging.getLogger(__name__)
# Palette of Okabe and Ito, which colour-blind readers can tell apart
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
GREY = "0.35"
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.xmargin": 0.015, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "0.5", "axes.grid": True, "grid.alpha": 0.25, "xtick.color": "0.5", "xtick.labelcolor": "0.2",
    "ytick.color": "0.5", "ytick.labelcolor": "0.2",
}  # fmt: skip
POINTS = 400  # a curve more than twice as long is drawn as the means of so many parts, with their ranges behind it
INCHES = 1.1  # height of a panel of height 1


class LossPlot(EventWriter):
    """Redraws OUTPUT_DIR/losses.png from OUTPUT_DIR/metrics.json; to be called after the writer of that file."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the pretraining config.
        """
        self.folder, self.chance = cfg.OUTPUT_DIR, None
        if cfg.LOSS.NAME == "info_nce":
            self.chance = cfg.LOSS.SCALE * math.log(2 * cfg.SOLVER.IMS_PER_BATCH - 1)

    def write(self) -> None:
        try:
            metrics, picture = (os.path.join(self.folder, name) for name in ("metrics.json", "losses.png"))
            draw_losses(metrics, picture, self.chance)
        except OSError as error:  # a picture is no reason to stop a run
            logger.warning(f"losses.png is not drawn: {error}")


def draw_losses(metrics_path: str | os.PathLike, out_path: str | Path, chance: float | None = None) -> bool:
    """Draw the curves of a run. The file is complete or as it was; without losses or accuracies there is none.

    Args:
        metrics_path: metrics.json, as Detectron2's JSONWriter writes it.
        out_path: PNG to write, atomically.
        chance: InfoNCE of embeddings that are all alike, ln(2B - 1) nats with B images in a batch; None: another
            loss, whose unit is not named.

    Returns:
        Whether there were losses or accuracies to draw; without any no file is written.

    Raises:
        OSError: if the picture cannot be written.
    """
    metrics = Metrics.read(metrics_path)
    losses, accuracies = metrics.matching(r"loss_(.+)"), metrics.matching(r"knn/(.+)-top1")
    if not losses and not accuracies:
        return False
    stages = sorted({**losses, **accuracies}, key=_upwards)
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(stages)} | {"lr": GREY}
    panels = [  # curves, label of the y axis, height, form of the last value
        (losses, "loss of each unit" + (" (nats)" if chance else ""), 3, "{} {:#.3g}"),
        (accuracies, "kNN top-1 (%)", 2, "{} {:.1f}"),
        (metrics.matching(r"(lr)"), "learning rate", 1, ""),
    ]
    panels = [panel for panel in panels if panel[0]]
    heights = [height for _, _, height, _ in panels]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, INCHES * sum(heights) + 0.3 * len(panels) + 0.3), layout="constrained")
        rows = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        for axes, (curves, label, height, form) in zip(rows, panels, strict=True):
            ends: list[tuple[float, str, str]] = []
            for name in sorted(curves, key=_upwards):
                dashed = name in stages and stages.index(name) >= len(COLORS)
                x, y = curves[name]
                last = _plot(axes, x, y, colors[name], "--" if dashed else "-")
                ends.append((last, form.format(for_figure(name), last).rstrip("."), colors[name]))
            if chance and curves is losses:
                axes.axhline(chance, color=GREY, ls=":", lw=1.2)
                ends.append((chance, form.format("chance", chance).rstrip("."), GREY))
            values = np.concatenate([y for _, y in curves.values()])
            if curves is losses and not chance and 0 < 10 * values.min() < values.max():
                axes.set_yscale("log")  # Barlow Twins' loss falls by orders of magnitude in the first steps
                axes.yaxis.set_major_formatter("{x:,g}")
            _label_ends(axes, ends, 0.17 / (INCHES * height))
            axes.set_ylabel(label)
        rows[-1].set_xlabel("iteration")
        rows[-1].xaxis.set_major_formatter("{x:,.0f}")
        figure.align_ylabels()
        _save(figure, out_path)
    return True


def _upwards(name: str) -> list[int | str]:
    """Sort key that orders stages from the image upwards: res2, res3[:1], res3, res10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name + "~")]


def _plot(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, style: str) -> float:
    """Draw a curve; returns the last value drawn."""
    if len(x) > 2 * POINTS:
        parts = np.array_split(y, POINTS)
        x, y = (np.array([part.mean() for part in np.array_split(values, POINTS)]) for values in (x, y))
        axes.fill_between(x, [p.min() for p in parts], [p.max() for p in parts], color=color, alpha=0.18, lw=0)
    # A single point is invisible without a marker
    axes.plot(x, y, style, color=color, lw=1.6, marker="o" if len(x) < 30 else None, ms=3.5)
    return y[-1]


def _label_ends(axes: Axes, ends: Iterable[tuple[float, str, str]], gap: float) -> None:
    """Write texts beside the ends of curves.

    Args:
        axes: the panel.
        ends: (value, text, colour) of each curve.
        gap: least distance between two texts, as a share of the panel's height.
    """
    ends = sorted(ends, key=lambda end: end[0])
    axes.autoscale_view()  # sets the limits, on which transData depends
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [to_axes.transform((0, value))[1] for value, _, _ in ends]
    for _ in range(100):
        heights[0], heights[-1] = max(heights[0], 0), min(heights[-1], 1)
        for i in range(len(heights) - 1):
            push = max(0, gap - heights[i + 1] + heights[i]) / 2
            heights[i], heights[i + 1] = heights[i] - push, heights[i + 1] + push
    for height, (_, text, color) in zip(heights, ends, strict=True):
        axes.text(1.012, height, text, color=color, va="center", transform=axes.transAxes)


def _save(figure: Figure, path: str | Path) -> None:
    with quiet_fonts():
        write_whole(path, lambda f: figure.savefig(f, format="png", dpi=130))

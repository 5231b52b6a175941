"""Picture of a linear readout: accuracy of each stage during training, and by learning rate."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.utils.events import EventWriter
from fvcore.common.config import CfgNode
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..engine.curves import COLORS, GREY, STYLE, _label_ends, _plot, _save, _upwards
from ..files.metrics import Metrics
from ..files.text import for_figure
from .results import choose, rate_name

logger = logging.getLogger(__name__)


class ProbePlot(EventWriter):
    """Redraws OUTPUT_DIR/probe.png from OUTPUT_DIR/metrics.json; to be called after the writer of that file."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the readout's config.
        """
        self.folder, self.rates = cfg.OUTPUT_DIR, list(cfg.SOLVER.BASE_LR)

    def write(self) -> None:
        try:
            metrics, picture = (os.path.join(self.folder, name) for name in ("metrics.json", "probe.png"))
            draw_probe(metrics, picture, self.rates)
        except OSError as error:  # a picture is no reason to stop a run
            logger.warning(f"probe.png is not drawn: {error}")


def draw_probe(metrics_path: str | Path, out_path: str | Path, rates: Sequence[float]) -> bool:
    """Draw loss and accuracy of each stage at its best learning rate, and accuracy by stage and learning rate.

    Args:
        metrics_path: metrics.json of a :class:`LinearProbe`.
        out_path: PNG to write, atomically.
        rates: BASE_LR.

    Returns:
        Whether there was a test to draw; without any no file is written.

    Raises:
        OSError: if the picture cannot be written.
    """
    metrics = Metrics.read(metrics_path)
    tested = [entry for entry in metrics.lines if any(key.startswith("test/") for key in entry)]
    if not tested:
        return False
    suffix = f"-lr{rate_name(rates[0])}-top1"
    names = [key[len("test/") : -len(suffix)] for key in tested[-1] if key.startswith("test/") and key.endswith(suffix)]
    stages = sorted(names, key=_upwards)
    below = list(dict.fromkeys(stage.partition("+")[0] for stage in stages))  # an expansion has the colour of its stage
    colors = {stage: COLORS[below.index(stage.partition("+")[0]) % len(COLORS)] for stage in stages}
    top1: dict[str, dict[str, dict[str, list[float]]]] = {}  # images -> stage -> last accuracy at each rate
    for which in ("test", "held_out"):
        keys = {s: [f"{which}/{s}-lr{rate_name(rate)}-top1" for rate in rates] for s in stages}
        top1[which] = {s: {"top1": [tested[-1].get(key, math.nan) for key in keys[s]]} for s in stages}
    held_out = any(key.startswith("held_out/") for key in tested[-1])
    best = {s: i for s, i in choose(top1["held_out" if held_out else "test"]).items() if i is not None}
    ends = {s: f"{s}-lr{rate_name(rates[i])}" for s, i in best.items()}
    sweep = len(rates) > 1
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 2.6 * (2 + sweep) + 0.5), layout="constrained")
        loss, accuracy, *rest = figure.subplots(2 + sweep, 1)
        loss.sharex(accuracy)
        for axes, pattern, form, label in (
            (loss, r"train/(.+)", "{} {:#.3g}", "training loss (nats)"),
            (accuracy, r"test/(.+)-top1", "{} {:.1f}", "test top-1 (%)"),
        ):
            curves = metrics.matching(pattern)
            drawn = {s: curves[ends[s]] for s in ends if ends[s] in curves}
            texts = [(_plot(axes, x, y, colors[s], _dashes(s)), s, colors[s]) for s, (x, y) in drawn.items()]
            if texts:
                _label_ends(axes, [(y, form.format(for_figure(s), y), color) for y, s, color in texts], 0.17 / 2.4)
            axes.set_ylabel(label)
        accuracy.set_xlabel("iteration")
        accuracy.xaxis.set_major_formatter("{x:,.0f}")
        if sweep:
            how = "held-out images" if held_out else "the test images"
            loss.set_title(f"each stage at the learning rate that is best on {how}", color=GREY, fontsize=10)
            _draw_sweep(rest[0], top1["test"], best, rates, colors)
        figure.align_ylabels()
        _save(figure, out_path)
    return True


def _dashes(stage: str) -> str:
    return "--" if "+" in stage else "-"


def _draw_sweep(
    axes: Axes,
    top1: Mapping[str, Mapping[str, Sequence[float]]],
    best: Mapping[str, int],
    rates: Sequence[float],
    colors: Mapping[str, str],
) -> None:
    """Draw accuracy by learning rate: a line per stage, a ring around its chosen rate, gaps where training diverged."""
    ends: list[tuple[float, str, str]] = []
    for stage, color in colors.items():
        order = sorted(range(len(rates)), key=rates.__getitem__)
        y = [top1[stage]["top1"][i] for i in order]
        axes.plot([rates[i] for i in order], y, f"{_dashes(stage)}o", color=color, lw=1.6, ms=3.5)
        if stage in best:
            i = best[stage]
            axes.plot(rates[i], top1[stage]["top1"][i], "o", color=color, mfc="none", ms=11, mew=1.6)
        finite = [value for value in y if math.isfinite(value)]
        ends += [(finite[-1], for_figure(stage), color)] if finite else []
    axes.set_xscale("log")
    axes.set_xticks(rates, [rate_name(rate) for rate in rates], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("learning rate (of 256 images); ring: chosen")
    axes.set_ylabel("test top-1 (%)")
    if ends:
        _label_ends(axes, ends, 0.17 / 2.4)

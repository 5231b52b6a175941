#!/usr/bin/env python3
"""README's picture from the record of benchmarks/demo.py: box AP and mask AP of each run, a point for each seed.

python studies/hero.py
"""

import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from matplotlib import rc_context
from matplotlib.figure import Figure

from pretrain.files.atomic import write_whole
from pretrain.files.figures import png

RUNS = {
    "finetune_loco": ("LoCo, fine-tuned", "#0072b2"),
    "frozen_loco": ("LoCo, frozen", "#56b4e9"),
    "frozen_random": ("random, frozen\n(control)", "#999999"),
}
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}


def aps(record: dict) -> dict[str, dict[str, list[float]]]:
    """Column ("box AP", "mask AP") -> run -> AP of each seed, in the record's first precision."""
    precision, seeds = record["settings"]["precisions"][0], record["results"].values()
    return {
        column: {name: [seed[name][precision][column] for seed in seeds] for name in RUNS}
        for column in ("box AP", "mask AP")
    }


def draw(found: dict[str, dict[str, list[float]]]) -> Figure:
    """A panel for each column: a bar for the mean over seeds, a point for each seed."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 2.9), layout="constrained")
        for axes, (column, runs) in zip(figure.subplots(1, 2), found.items(), strict=True):
            for place, (name, (_, color)) in enumerate(reversed(RUNS.items())):
                values = runs[name]
                mean, std = statistics.mean(values), statistics.stdev(values)
                axes.barh(place, mean, color=color, height=0.62)
                axes.plot(values, [place] * len(values), "o", color="black", ms=4, alpha=0.7)
                axes.text(
                    max(*values, mean) + 0.02 * max(map(max, runs.values())),
                    place,
                    f" {mean:.1f} ± {std:.1f}",
                    va="center",
                )
            axes.set_yticks(range(len(RUNS)), [label for label, _ in reversed(RUNS.values())])
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(0, 1.25 * max(map(max, runs.values())))
            axes.set_title(f"{column} (%)", loc="left", fontweight="bold", fontsize=11)
        axes.set_yticklabels([])
        figure.suptitle(
            "What the backbone is worth: Mask R-CNN after minutes, three seeds of the demo", x=0.01, ha="left"
        )
    return figure


def main() -> None:
    """Write docs/demo.png."""
    found = aps(json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text()))
    write_whole(ROOT / "docs" / "demo.png", png(draw(found), dpi=130))


if __name__ == "__main__":
    main()

"""What a linear readout found: which learning rate each stage takes, results.json, a table."""

import math
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..files.results import LinearResults, LinearStage, kind_of
from ..files.schema import read_json
from ..files.tables import GENERAL, Column, Table, decimals


def rate_name(rate: float) -> str:
    """A learning rate as in the names of metrics and results: 0.3, 30."""
    return f"{rate:g}"


def chosen_on(cfg: CfgNode, held_out: dict | None) -> str | None:
    """On what the learning rate of each stage is chosen: "held-out", "test", or None if there is one only."""
    return ("held-out" if held_out else "test") if len(cfg.SOLVER.BASE_LR) > 1 else None


def choose(accuracies: dict[str, dict[str, list]]) -> dict[str, int | None]:
    """Position of the best learning rate of each stage, the first of equal ones.

    Args:
        accuracies: stage name -> {"top1": list of percentages}, on the images that decide.

    Returns:
        dict: stage name -> int; None if all have diverged.
    """
    chosen = {}
    for name, tops in accuracies.items():
        known = [i for i, top1 in enumerate(tops["top1"]) if math.isfinite(top1)]
        chosen[name] = max(known, key=tops["top1"].__getitem__) if known else None
    return chosen


def linear_stages(
    cfg: CfgNode, test: dict[str, dict[str, list]], held_out: dict[str, dict[str, list]] | None
) -> dict[str, LinearStage]:
    """The figures of :class:`LinearResults`.

    Args:
        cfg: the readout's config.
        test, held_out: accuracies of :class:`LinearClassifiers` on the test and the held-out images, the latter None
            without such images.

    Returns:
        dict: stage name -> :class:`LinearStage`; percentages are None where a classifier has diverged.
    """
    stages = {}
    for name, best in choose(held_out or test).items():
        rows = [
            {"top1": _number(top1), "held_out_top1": _number(held_out[name]["top1"][i]) if held_out else None}
            for i, top1 in enumerate(test[name]["top1"])
        ]
        stage = stages[name] = LinearStage(sweep=dict(zip(map(rate_name, cfg.SOLVER.BASE_LR), rows, strict=True)))
        if best is not None:
            stage.lr, stage.top1, stage.held_out_top1 = cfg.SOLVER.BASE_LR[best], *rows[best].values()
            stage.top5 = _number(test[name]["top5"][best]) if "top5" in test[name] else None
    return stages


def protocol(cfg: CfgNode, held_out: dict | None) -> dict[str, Any]:
    """What was run, in words that need no config beside them."""
    solver, cached = cfg.SOLVER, cfg.FEATURES.CACHED
    steps = f"x {solver.GAMMA:g} after epochs {', '.join(f'{step:g}' for step in solver.STEPS)}"
    return {
        "features": "central crops, cached" if cached else "random resized crops and flips",
        "crop_size": cfg.INPUT.CROP_SIZE,
        "crop_area": None if cached else list(cfg.INPUT.CROP_AREA),
        "standardize": cfg.FEATURES.STANDARDIZE,
        "optimizer": solver.OPTIMIZER,
        "base_lr": list(solver.BASE_LR),
        "batch": solver.IMS_PER_BATCH,
        "momentum": solver.MOMENTUM,
        "nesterov": solver.NESTEROV,
        "weight_decay": solver.WEIGHT_DECAY,
        "epochs": solver.EPOCHS,
        "schedule": "cosine" if solver.SCHEDULE == "cosine" else steps,
        "held_out": cfg.DATASETS.HELD_OUT,
        "chosen_on": chosen_on(cfg, held_out),
        "seed": cfg.SEED,
        "processes": comm.get_world_size(),
    }


def table(results: LinearResults) -> str:
    """Lines of text: the accuracies of each stage, and how the learning rates were chosen."""
    where = (results.protocol or {})["chosen_on"]
    columns = [
        Column("stage"), Column("top-1", decimals(2)), Column("top-5", decimals(2)), Column("learning rate", GENERAL)
    ]  # fmt: skip
    shown = Table(columns)
    for name, stage in results.linear.items():
        rate = "all diverged" if stage.lr is None else stage.lr
        shown.rows.append({"stage": name, "top-1": stage.top1, "top-5": stage.top5, "learning rate": rate})
    lines = [shown.terminal()]
    if where:
        images = "held-out training images" if where == "held-out" else "test images themselves"
        lines.append(f"(each stage's learning rate was chosen on the {images})")
    return "\n".join(lines)


def at_the_edge(results: LinearResults) -> list[str]:
    """Stages whose best learning rate is the least or the largest of several: a better one may lie beyond."""
    rates = (results.protocol or {})["base_lr"]
    return [name for name, row in results.linear.items() if len(rates) > 2 and row.lr in (min(rates), max(rates))]


def refuse_others(folder: str | os.PathLike, kind: str) -> None:
    """Leave the results of another readout alone.

    Args:
        folder: OUTPUT_DIR.
        kind: "linear" or "knn".

    Raises:
        ValueError: if a results.json of another kind is there.
    """
    path = os.path.join(folder, "results.json")
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):  # none, or damaged and of no use
        return
    if not isinstance(found, dict) or kind_of(found) != kind:
        raise ValueError(f"{path} has results of another kind, which stay: name another OUTPUT_DIR")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Run folders of the study -> one JSON file with every figure that the tables and pictures are made of."""

import json
import math
import statistics
import sys
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import decoder

from pretrain.config import get_cfg
from pretrain.files.results import read_results


def collect(folder):
    """Every run with a finished read-out or detector.

    Args:
        folder: what run.py has as --output.

    Returns:
        list: a dict for each run with ``scale``, ``row``, ``rate``, ``epochs``, ``seed``, ``decoder``,
        ``linear`` and ``knn`` (stage -> top-1, %), ``held_out`` (stage -> top-1 on held-out training images, %),
        ``detection`` (data -> box and mask AP, %), ``cpu_seconds`` (by tool), ``finished`` (date) and ``machine``. What
        is not done is absent. A run whose loss exploded has nothing but ``held_out``, 0 at res5.

    Raises:
        FileNotFoundError: if there is no finished run.
    """
    folders = sorted(path.parent for path in Path(folder).glob("*/*/*/cost.jsonl"))
    runs = [_run(run) for run in folders if (run / "diverged").exists() or [*run.glob("*/results.json")]]
    if not runs:
        raise FileNotFoundError(f"{folder}: no finished run of the study")
    return runs


def _run(folder):
    scale, row, name = folder.parts[-3:]
    epochs, rate, seed = name.split("_")
    cfg = get_cfg()
    cfg.merge_from_other_cfg(cfg.load_cfg((folder / "pretrain" / "config.yaml").read_text()))
    run = {
        "scale": scale,
        "row": row,
        "rate": float(rate.removeprefix("lr")),
        "epochs": float(epochs.removesuffix("ep")),
        "seed": int(seed.removeprefix("seed")),
        "decoder": decoder(cfg),
    }
    if (folder / "diverged").exists():
        run["held_out"] = {"res5": 0.0}
    found = {path.parent.name: read_results(path) for path in sorted(folder.glob("*/results.json"))}
    if probe := found.pop("linear_probe", None):
        run["linear"] = {name: stage.top1 for name, stage in probe.linear.items()}
        run["held_out"] = {name: stage.held_out_top1 or 0.0 for name, stage in probe.linear.items()}
    if knn := found.pop("knn", None):
        run["knn"] = {stage: next(iter(settings.values())).top1 for stage, settings in knn.knn.items()}
    for name, detector in found.items():
        aps = {f"{task}_ap": detector.results[key]["AP"] for task, key in (("box", "bbox"), ("mask", "segm"))}
        run.setdefault("detection", {})[name] = aps
    return run | _cost(folder / "cost.jsonl")


def _cost(path):
    """What the parts of a run took, when the last one ended, and on which machine.

    A part that has no end was killed: its cost is not known.
    """
    parts = {}
    for line in path.read_text().splitlines():
        part = json.loads(line)
        parts.setdefault((part["what"], part["start"]), {}).update(part)
    cpu = {}
    for part in parts.values():
        cpu.setdefault(part["what"], []).append(part.get("cpu_seconds"))
    last = max(parts.values(), key=lambda part: part["start"])
    ended = last["start"] + last.get("seconds", 0)
    return {
        "cpu_seconds": {what: None if None in values else round(sum(values)) for what, values in cpu.items()},
        "finished": datetime.fromtimestamp(ended, timezone.utc).strftime("%Y-%m-%d"),
        "machine": last["machine"],
    }


class Figure:
    """Mean and standard deviation (of a sample) of a figure over seeds, with the number of seeds."""

    def __init__(self, values):
        self.values = [value for value in values if value is not None and math.isfinite(value)]
        self.mean = statistics.mean(self.values) if self.values else math.nan
        self.deviation = statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def __str__(self):
        if not self.values:
            return "–"
        return f"{self.mean:.1f}" + (f" ± {self.deviation:.1f}" if len(self.values) > 1 else "")

"""The mean of AP over the splits of a low-shot set, and what keeps it from being that of a published row."""

import statistics
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from pretrain.files.text import for_terminal

from ...data.low_shot import SEEDS
from ...report.runs import published_sentence
from ...runs.folder import Run, read_run

TASKS = {"box_ap": "bbox", "mask_ap": "segm"}  # in our files, in Detectron2's results


def summarize(cfg: CfgNode, folders: dict[str, Path]) -> dict[str, Any]:
    """Mean and standard deviation over splits.

    Args:
        cfg: the config, for what is published.
        folders: name of a split -> its folder, with a results.json.

    Returns:
        "row", "differences" from it, "train", "test", "splits", and for "box_ap" and "mask_ap", in percent, each
        None if not known, "values", "mean", "std" (of a sample, as the splits are one) and "published", which is known
        only without differences.
    """
    runs = [read_run(folder) for folder in folders.values()]
    if other := [run.folder for run in runs if run.detection.results is None]:
        raise ValueError(f"{other[0]} has no results of a detector: evaluate that split again")
    results = [run.detection.results or {} for run in runs]
    row = cfg.PUBLISHED.ROW or None
    different = differences(row, runs) if row else []
    summary = {
        "row": row,
        "differences": different,
        "train": cfg.DATASETS.TRAIN[0].rpartition("_seed")[0],
        "test": cfg.DATASETS.TEST[0],
        "splits": list(folders),
    }
    for name, task in TASKS.items():
        values: list[Any] = [result.get(task, {}).get("AP") for result in results]
        whole = None not in values  # a mean over some of the splits would pass for one over all
        summary[name] = {
            "values": values,
            "mean": statistics.mean(values) if whole else None,
            "std": statistics.stdev(values) if whole and len(values) > 1 else None,
            "published": None if different else cfg.PUBLISHED[name.upper()] or None,
        }
    return summary


def differences(row: str, runs: list[Run]) -> list[str]:
    """In what the splits differ from a published row, which is a mean over all of them."""
    unknown = ["row (its results.json names none)"]
    found = [text for run in runs for text in (run.published.differences or [] if run.published else unknown)]
    if len(runs) != len(SEEDS):
        found.append(f"splits ({len(runs)}, the row has {len(SEEDS)})")
    return list(dict.fromkeys(found))


def text(summary: dict[str, Any]) -> str:
    """The figures, with percentages of one decimal, and what keeps them from being those of a published row."""
    lines = [f"{summary['train']}, {len(summary['splits'])} splits, on {summary['test']}:"]
    for name in TASKS:
        mean, std, published = ("-" if v is None else f"{v:.1f}" for v in list(summary[name].values())[1:])
        source = "" if published == "-" else f"   published: {published} ({summary['row']})"
        lines.append(f"  {name.replace('_ap', ' AP'):8}{mean:>5} ± {std}{source}")
    if summary["differences"]:
        lines.append(f"  {published_sentence(summary['row'], summary['differences'])}")
    return "\n".join(map(for_terminal, lines))

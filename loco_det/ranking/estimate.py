"""How long the steps of an evaluation take and how much disk they need, before anything is run."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from pretrain.files.results import read_results

from .data import KNOWN
from .recipes import LIGHT, Recipe

# Seconds for a million pixels of training, on two cores of an AMD EPYC and on a V100: narrow heads from the demo's
# runs, full ones from benchmarks/detection_step.py; on the GPU Detectron2's MODEL_ZOO.md (R50-FPN, 0.261 s for two
# images)
SECONDS = {
    ("cpu", "narrow", "frozen"): 1.6, ("cpu", "narrow", "finetune"): 2.2, ("cpu", "full", "frozen"): 5.0,
    ("cpu", "full", "finetune"): 8.0, ("cuda", "full", "frozen"): 0.12, ("cuda", "full", "finetune"): 0.12,
    ("cuda", "narrow", "frozen"): 0.12, ("cuda", "narrow", "finetune"): 0.12,
}  # fmt: skip
CHECKPOINT = {  # bytes; Detectron2 stores the weights, and the momentum of those that learn
    ("narrow", "frozen"): 61e6, ("narrow", "finetune"): 110e6, ("full", "frozen"): 270e6, ("full", "finetune"): 360e6
}  # fmt: skip
FULL = {*(config for config, _, _ in KNOWN.values()), *LIGHT.values()}  # configs with full-size heads and images
CORES = 2  # of the CPU's figures


def training_seconds(recipe: Recipe, protocol: str, device: str, cores: int, gpus: int = 1) -> float:
    """Of one training with a ResNet-50, or with the demo's ResNet-18.

    Args:
        recipe: of the protocol.
        protocol: "frozen" or "finetune".
        device: MODEL.DEVICE.
        cores: of the CPU, for this training.
        gpus: for this training.
    """
    kind = "cuda" if device.startswith("cuda") else "cpu"
    seconds = SECONDS[kind, _heads(recipe), protocol] * recipe.images * recipe.megapixels * recipe.iterations
    if recipe.tool == "light_head.py":
        seconds /= 5  # about that: docs/light_head.md
    return seconds / gpus if kind == "cuda" else seconds * CORES / cores


def training_bytes(recipe: Recipe, protocol: str) -> float:
    """On the disk after a training: the last checkpoint, and figures and pictures."""
    return CHECKPOINT[_heads(recipe), protocol] + 5e6


def _heads(recipe):
    return "full" if recipe.config in FULL else "narrow"


def measured_seconds(folders: Iterable[Path]) -> float | None:
    """The median duration of finished runs, with their evaluation; None if none is finished."""
    found = []
    for folder in folders:
        try:
            results = read_results(folder / "results.json")
        except (OSError, ValueError):
            continue
        if seconds := getattr(results, "seconds", None):
            found.append(seconds + (getattr(results, "evaluation_seconds", None) or 0))
    return statistics.median(found) if found else None

"""Runs that may be compared with each other, and in words why others may not."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pretrain.files.text import shortened

from ..runs.folder import Run

MOST = 4  # settings that a sentence names
LONGEST = 60  # characters of a value in it
HASH = re.compile(r"([0-9a-f]{8})[0-9a-f]{56}(:\w+)?")
NAMES = {
    "data.train": "training data (SHA-256)", "data.test": "test data (SHA-256)", "images.train": "training images",
    "images.test": "test images", "AP": "definition of AP", "SOLVER.MAX_ITER": "iterations",
    "SOLVER.IMS_PER_BATCH": "images a step", "SOLVER.STEPS": "learning rate falls at",
    "SOLVER.WARMUP_ITERS": "iterations of warm-up", "MODEL.BACKBONE.FREEZE_AT": "backbone",
    "MODEL.RESNETS.NORM": "norm of the backbone", "MODEL.META_ARCHITECTURE": "detector", "MODEL.MASK_ON": "masks",
    "INPUT.MIN_SIZE_TRAIN": "shorter side in training", "INPUT.MIN_SIZE_TEST": "shorter side in tests",
    "loco-det": "version of loco-det", "detectron2": "version of Detectron2",
}  # fmt: skip
FIRST = list(NAMES)  # the settings that are named before others, in this order


def comparable(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The evaluated detection runs of which it is known what they can be compared with, by key, in their order."""
    found = defaultdict(list)
    for run in _evaluated(runs):
        if run.detection.comparability:
            found[run.detection.comparability.key].append(run)
    return dict(found)


def together(runs: Sequence[Run]) -> list[list[Run]]:
    """The detection runs that may stand in one table or figure; those of which it is not known stand alone."""
    groups = list(comparable(runs).values())
    known = {id(run) for group in groups for run in group}
    return groups + [[run] for run in runs if run.kind == "detection" and id(run) not in known]


def numbers(runs: Sequence[Run]) -> dict[str, int]:
    """Key -> number of its group, from 1; empty if nothing is compared: where all runs are in one group, or none is."""
    groups = comparable(runs)
    alone = sum(map(len, groups.values())) < len(_evaluated(runs))
    return {key: number for number, key in enumerate(groups, 1)} if groups and len(groups) + alone > 1 else {}


def group_notes(runs: Sequence[Run]) -> list[str]:
    """What differs between groups of runs, in a sentence, and another on runs of which it is not known."""
    groups, notes = comparable(runs), []
    if len(groups) > 1:
        known = [group[0].detection.comparability for group in groups.values()]
        settings = [one.settings for one in known if one]
        which = ", ".join(map(str, range(1, len(groups)))) + f" and {len(groups)}"
        texts = "; ".join(different(settings)) or "their files have other keys"
        notes.append(f"Runs of groups {which} cannot be compared with each other: {texts}.")
    if len(evaluated := _evaluated(runs)) > 1:
        unknown = [run.name for run in evaluated if not run.detection.comparability]
        names = ", ".join(unknown[:MOST]) + (f" and {len(unknown) - MOST} more" if len(unknown) > MOST else "")
        remedy = "results.json does not say it; train_net.py --eval-only --resume in their folders writes it anew"
        notes += [f"It is not known what can be compared with {names}: {remedy}."] if unknown else []
    return notes


def different(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The settings that are not the same everywhere, such as "iterations 350 / 700", a text each; at most a few.

    Args:
        settings: of each group.
    """
    keys = [key for key in dict.fromkeys(key for one in settings for key in one) if _differs(settings, key)]
    keys.sort(key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    texts = [f"{NAMES.get(key, key)} {' / '.join(_text(key, one.get(key)) for one in settings)}" for key in keys]
    return texts[:MOST] + ([f"and {len(texts) - MOST} more"] if len(texts) > MOST else [])


def _evaluated(runs):
    return [run for run in runs if run.kind == "detection" and run.results]


def _differs(settings, key):
    return any(one.get(key) != settings[0].get(key) for one in settings)


def _text(key, value):
    if key == "MODEL.BACKBONE.FREEZE_AT" and value in (0, 5, 99):
        return "frozen" if value else "fine-tuned"
    if key == "classes" and isinstance(value, list):
        return f"{len(value)} ({shortened(', '.join(map(str, value)), LONGEST)})"
    if isinstance(value, list):
        return shortened(", ".join(_text("", part) for part in value), LONGEST) or "none"
    found = HASH.fullmatch(value) if isinstance(value, str) else None
    return found[1] + (found[2] or "") if found else "–" if value is None else shortened(str(value), LONGEST) or "none"

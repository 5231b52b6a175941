"""Whether a run is the published row that its config names: same weights, data, schedule and network.

A row is defined by the file in ``configs/`` that has its name (PUBLISHED.ROW). A run may begin with that file and
change anything in it. So what was run is compared with what the file says, and a published figure stands only beside
runs that differ in nothing that bears on the result.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from pretrain.config import get_cfg as get_pretraining_cfg
from pretrain.files.shipped_configs import CONFIGS
from pretrain.files.yaml_files import merge_config_file, read_yaml

from ..config import add_loco_config

IMAGENET = "datasets/imagenet/train", 1_281_167  # as pretraining configs call it, and its number of images
# Nothing that is learned or measured depends on these
FREE = re.compile(
    r"OUTPUT_DIR|SEED|VERSION|VIS_PERIOD|CUDNN_BENCHMARK|FLOAT32_PRECISION|PUBLISHED\..*|WANDB\..*|DATASETS\.(CUSTOM\..*|ALLOW_OUTSIDE)"
    r"|MODEL\.(DEVICE|KEEP_FREED_MEMORY|WEIGHTS|FAST_FROZEN\..*|LIGHT_HEAD\.(FEATURES|TRAIN_IMAGES|TEST_IMAGES))"
    r"|INPUT\.EXACT_RESIZE|DATALOADER\.NUM_WORKERS|SOLVER\.(CHECKPOINT_PERIOD|REFERENCE_WORLD_SIZE|AMP\.AUTO)"
    r"|TEST\.(EVAL_PERIOD|EXPECTED_RESULTS|COCO_EVALUATOR|NUM_PICTURES|PICTURE_THRESHOLD)"
)
FREE_IN_PRETRAINING = re.compile(
    r"OUTPUT_DIR|SEED|KNN\..*|DATALOADER\..*|DATASETS\..*|INPUT\.ON_DEVICE|MODEL\.(DEVICE|KEEP_FREED_MEMORY|RECOMPUTE|COMPILE)"
    r"|MODEL\.STAGE_PARALLEL\.(DEVICES|SPLIT|TRACE)"
    r"|SOLVER\.(CHECKPOINT_PERIOD|CHECKPOINTS_KEPT|LOG_PERIOD|MAX_LOSS)"
)
GROUPS = {"DATASETS.TRAIN": "data", "DATASETS.TEST": "data"}
GROUPS |= dict.fromkeys(("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.STEPS"), "schedule")
NAMES = {
    "DATASETS.TRAIN": "trained on {}", "DATASETS.TEST": "tested on {}", "SOLVER.MAX_ITER": "{} iterations",
    "SOLVER.IMS_PER_BATCH": "{} images a step", "SOLVER.STEPS": "steps at {}", "SOLVER.EPOCHS": "{} epochs",
}  # fmt: skip
IMAGES = {  # with objects
    "coco_2017_val": 5000, "coco_2017_train": 117_266, "cityscapes_fine_instance_seg_val": 500,
    "voc_2007_trainval": 5011, "voc_2012_trainval": 11_540, "voc_2007_test": 4952,
}  # fmt: skip
MOST = 4  # keys of a group that are named


def differences(
    config: dict[str, Any],
    weights: str | None,
    metadata: dict[str, Any] | None = None,
    pretraining: dict[str, Any] | None = None,
    iteration: int | None = None,
    images: dict[str, int] | None = None,
) -> list[str]:
    """In what a run differs from the row that its config names.

    Args:
        config: the run's config as nested dicts; keys that it lacks have their defaults.
        weights: MODEL.WEIGHTS of the run's beginning.
        metadata: what the converter wrote into that file, as in results.json; None: not known.
        pretraining: "config" (nested dicts), "images" and "iterations" of the run of tools/pretrain.py that made them,
            as the converter writes them into the file; None: not known.
        iteration: iterations that the network was trained for; None: not known.
        images: data set -> number of its images, of those that are known; a part of one may be registered by its name.

    Returns:
        list of str, such as "schedule (4 iterations, the row has 90000)"; empty if it is the row.
    """
    row = row_config(config["PUBLISHED"]["ROW"])
    if row is None:
        return ["settings (no file in configs/ defines this row)"]
    run = flat(default_config()) | flat(config)
    if iteration is None:
        found = ["training (how long is not known)"]
    else:
        found = []
        run["SOLVER.MAX_ITER"] = min(iteration, run["SOLVER.MAX_ITER"])
    found += [f"weights ({text})"] if (text := _other_weights(row, weights, metadata, pretraining)) else []
    keys = _other_keys(run, flat(row), FREE)
    groups: dict[str, list[str]] = {}
    for name, count in (images or {}).items():
        if count != IMAGES.get(name, count):
            groups.setdefault("data", []).append(f"{count} images in {name}, the row has {IMAGES[name]}")
    for key, text in keys.items():
        groups.setdefault(GROUPS.get(key, "settings"), []).append(text)
    return found + [f"{name} ({_listed(groups[name])})" for name in ("data", "schedule", "settings") if name in groups]


def published_row(config: dict[str, Any], **run: Any) -> dict[str, Any] | None:
    """The row that a config names and how a run compares with it; further arguments as of :func:`differences`.

    Returns:
        dict: "row", "box_ap", "mask_ap" (percent or None) and "differences"; None if the config names no row.
    """
    row = config["PUBLISHED"]
    if not row["ROW"]:
        return None
    defined = (row_config(row["ROW"]) or config)["PUBLISHED"]  # no config of a run's own makes a figure
    figures = {"box_ap": defined["BOX_AP"] or None, "mask_ap": defined["MASK_AP"] or None}
    return {"row": row["ROW"], **figures, "differences": differences(config, **run)}


@functools.cache
def row_config(name: str) -> CfgNode | None:
    """The config of the file in ``configs/`` that defines the row of this name; None if there is none."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        if read_yaml(path).get("PUBLISHED", {}).get("ROW") == name:
            cfg = default_config().clone()
            merge_config_file(cfg, path)
            return cfg
    return None


@functools.cache
def default_config() -> CfgNode:
    """Detectron2's config with loco-det's keys; not to be changed."""
    cfg = get_cfg()
    add_loco_config(cfg)
    return cfg


def _other_weights(row, weights, metadata, pretraining):
    """How the weights are not the row's; "" if they are."""
    wanted, metadata = row["PUBLISHED"]["WEIGHTS"] or row["MODEL"]["WEIGHTS"], metadata or {}
    if wanted == "random" or weights == "random":
        return "" if weights == wanted else f"{Path(weights).name}, the row has {wanted}"
    if wanted.endswith(".yaml"):
        return _other_pretraining(wanted, pretraining)
    source, digits = metadata.get("source"), re.search(r"-([0-9a-f]{8})\.\w+$", wanted)
    if digits and str(metadata.get("sha256")).startswith(digits[1]):  # as torch names released files
        return ""
    if source == wanted:  # any file may be called so
        return f"of a file called {source}, as the row's; nothing proves that it is the same"
    return f"of {source or 'unknown origin'}, the row has {wanted}"


def _other_pretraining(recipe, pretraining):
    """How a run of tools/pretrain.py is not that of a file in ``configs/``; "" if it is."""
    known = pretraining or {}
    config, images, iterations = (known.get(key) for key in ("config", "images", "iterations"))
    if not (isinstance(config, dict) and isinstance(images, int) and isinstance(iterations, int)):
        return f"not known to be from configs/{recipe}, as the row's are"
    wanted = get_pretraining_cfg()
    merge_config_file(wanted, CONFIGS / recipe)
    run = flat(get_pretraining_cfg()) | flat(config)
    found = list(_other_keys(run, flat(wanted), FREE_IN_PRETRAINING).values())
    if wanted.DATASETS.TRAIN == IMAGENET[0] and images != IMAGENET[1]:
        found.append(f"{images} images, the row has {IMAGENET[1]}")
    planned = round(run["SOLVER.EPOCHS"] * (images // run["SOLVER.IMS_PER_BATCH"]))
    if iterations < planned:
        found.append(f"{iterations} of {planned} iterations")
    return _listed(found)


def _other_keys(run, row, free):
    """Key -> text, for the keys with other values than the row's."""
    found = {}
    for key, value in row.items():
        if not free.fullmatch(key) and run.get(key) != value:
            form = NAMES.get(key, f"{key} {{}}")
            found[key] = f"{form.format(_text(run.get(key)))}, the row has {_text(value)}"
    return found


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"MODEL.WEIGHTS": value}: plain types, and one seed of a low-shot set stands for all."""
    pairs: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            pairs[prefix + key] = json.loads(json.dumps(value))
    train = pairs.get("DATASETS.TRAIN")
    if isinstance(train, list):
        pairs["DATASETS.TRAIN"] = [re.sub(r"_seed\d+$", "", name) for name in train]
    return pairs


def _text(value):
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value) or "none"


def _listed(texts):
    more = f"; and {len(texts) - MOST} more" if len(texts) > MOST else ""
    return "; ".join(texts[:MOST]) + more

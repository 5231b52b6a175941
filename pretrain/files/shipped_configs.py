"""The configs that come with the project, by name: ``coco_loco_frozen.yaml`` from any folder."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]  # a checkout, or site-packages
_INSTALLED = _ROOT / "loco_det" / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _ROOT / "configs"
TOOLS = {"pretrain": "tools/pretrain.py", "readout": "tools/linear_probe.py or tools/knn.py"}  # of configs in a folder
DETECTION = "tools/train_net.py"  # of all others
FOLDERS = ("", "detection", "pretrain", "readout", "overlays")  # below which a name may be left to begin


def find_config(name: str) -> str:
    """The path of a config: a file that is there, or else a shipped one.

    Args:
        name: a path, or a name below ``configs/``, ``configs/detection/``, ``configs/pretrain/``,
            ``configs/readout/`` or ``configs/overlays/``; ``configs/`` and ``.yaml`` may be left out.

    Returns:
        A path that exists; the name itself if there is none, for the error of whoever opens it.
    """
    if os.path.isfile(name) or os.path.isabs(name) or "://" in name:
        return name
    for folder in FOLDERS:
        for ending in ("", ".yaml"):
            path = CONFIGS / folder / (name.removeprefix("configs/") + ending)
            if path.is_file() and CONFIGS in path.resolve().parents:
                return str(path)
    return name


def shipped_names() -> list[str]:
    """Names of all shipped configs but the bases, below ``configs/``, sorted."""
    paths = (path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if path.name[0] != "_")
    return sorted(paths)


def tool_of(path: str) -> str | None:
    """The command that a shipped config is for; None if it is not shipped.

    Args:
        path: of :func:`find_config`.
    """
    try:
        folder = Path(path).resolve().relative_to(CONFIGS.resolve()).parts[0]
    except ValueError:
        return None
    return TOOLS.get(folder, DETECTION)


def nearest_name(name: str, names: Sequence[str]) -> str | None:
    """The shipped config whose name is nearest to one that is not there; None if none is near.

    Args:
        name: that is not there.
        names: those of :func:`shipped_names` that may be meant.
    """
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    places: dict[str, str] = {}  # a name, and its parts that may stand for it -> the config
    for full in names:
        stem = full.removesuffix(".yaml")
        for part in (stem, stem.partition("/")[2], stem.rpartition("/")[2]):
            if part:
                places.setdefault(part, full)
    near = difflib.get_close_matches(wanted, places, n=1, cutoff=0.75)
    return places[near[0]] if near else None

"""Measure what a self-supervised backbone is worth for detection and segmentation, with Detectron2.

The names in ``__all__`` are the public API. They are imported when they are first used: ``import loco_det`` is fast
and needs neither torch nor Detectron2.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import add_loco_config
    from .convert import convert as convert_to_d2
    from .convert import convert_back as convert_from_d2
    from .convert import load_encoder
    from .convert.loading import load_backbone
    from .ranking.comparisons import rank
    from .ranking.evaluation import read_evaluation

    __version__: str

__all__ = [
    "add_loco_config",
    "convert_from_d2",
    "convert_to_d2",
    "load_backbone",
    "load_encoder",
    "rank",
    "read_evaluation",
]
_PLACES = {  # a package is called convert: the functions are public under the names of their commands
    "add_loco_config": ("config", "add_loco_config"),
    "convert_from_d2": ("convert.conversion", "convert_back"),
    "convert_to_d2": ("convert.conversion", "convert"),
    "load_backbone": ("convert.loading", "load_backbone"),
    "load_encoder": ("convert.encoder", "load_encoder"),
    "rank": ("ranking.comparisons", "rank"),
    "read_evaluation": ("ranking.evaluation", "read_evaluation"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from pretrain.files.version import version

        return version()
    if name not in _PLACES:
        raise AttributeError(f"module 'loco_det' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f"loco_det.{module}"), attribute)


def __dir__() -> list[str]:
    return [*globals(), "__version__", *__all__]

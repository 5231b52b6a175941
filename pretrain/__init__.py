"""Learn image encoders from unlabeled images without end-to-end backpropagation.

The names in ``__all__`` are the public API. They are imported when they are first used: ``import pretrain`` is fast
and needs neither torch nor Detectron2.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import get_cfg
    from .encoders import Encoder, StageEncoder, build_encoder
    from .engine.checkpoint import load_encoder
    from .learning.build import build_learner
    from .learning.decoders import Decoder
    from .learning.learner import LocalLearner
    from .learning.losses import barlow_twins, info_nce, vicreg

    __version__: str

__all__ = [
    "Decoder",
    "Encoder",
    "LocalLearner",
    "StageEncoder",
    "barlow_twins",
    "build_encoder",
    "build_learner",
    "get_cfg",
    "info_nce",
    "load_encoder",
    "vicreg",
]
_MODULES = {
    "Decoder": "learning.decoders",
    "Encoder": "encoders",
    "LocalLearner": "learning.learner",
    "StageEncoder": "encoders",
    "barlow_twins": "learning.losses",
    "build_encoder": "encoders",
    "build_learner": "learning.build",
    "get_cfg": "config",
    "info_nce": "learning.losses",
    "load_encoder": "engine.checkpoint",
    "vicreg": "learning.losses",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from pretrain.files.version import version

        return version()
    if name not in _MODULES:
        raise AttributeError(f"module 'pretrain' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pretrain.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), "__version__", *__all__]

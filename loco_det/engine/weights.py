"""Whether a file of weights is of the network that a config names, before data are read and anything is built."""

import re
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from pretrain.files.remote import is_remote, shown
from pretrain.files.safe_load import plain, read

from ..modeling.timm.build import BUILDERS
from .checkpoint import HEURISTICS, UNREADABLE, local_weights

# Names of a network of timm, alone or in a detector; an encoder of ``pretrain`` may have a "network", too
NETWORK = re.compile(r"(?:(?!encoder\.)[^.]+\.)*?network\.(.+)")
UNUSED = re.compile(r"(head|head_drop|fc|fc_norm|norm|norm_pre|global_pool|classifier|attn_pool)\.")  # after the maps


def check_network(cfg: CfgNode) -> None:
    """Refuse weights of a network of timm for another one, or for a ResNet, and a ResNet's for a network of timm.

    Detectron2 only warns of it, and where all shapes fit, as of ConvNeXt-S for ConvNeXt-T, it says less than that.
    What cannot be read is left to the loading, which says why.

    Args:
        cfg: the config; MODEL.WEIGHTS is a file or an address.

    Raises:
        ValueError: one line that names both.
    """
    path = shown(cfg.MODEL.WEIGHTS.removesuffix(HEURISTICS))
    tensors = _tensors(cfg.MODEL.WEIGHTS)
    if tensors is None:
        return
    found = {match[1]: shape for name, shape in tensors.items() if (match := NETWORK.match(name))}
    if cfg.MODEL.BACKBONE.NAME not in BUILDERS:
        if found:
            raise ValueError(
                f"{path} holds a network of timm ({next(iter(found))}, ...), and MODEL.BACKBONE.NAME "
                f"{cfg.MODEL.BACKBONE.NAME} is none: {_overlay(path)}"
            )
        return
    from ..modeling.timm.network import build_network  # here: timm takes a second

    name = cfg.MODEL.TIMM.NAME
    if not found:
        raise ValueError(
            f"{path} holds no network of timm (its first tensor is {next(iter(tensors), 'none')}), and MODEL.TIMM.NAME "
            f"is {name}: convert a checkpoint of {name}, or take the config of these weights"
        )
    with torch.device("meta"):
        wanted = {
            key: tuple(value.shape)
            for key, value in build_network(name, final_norm=cfg.MODEL.TIMM.FINAL_NORM).state_dict().items()
        }
    wanted = {key: shape for key, shape in wanted.items() if not key.endswith("num_batches_tracked")}
    wrong = [f"has no {key}" for key in wanted if key not in found]
    wrong += [f"has {key} of {_text(found[key])}, not {_text(shape)}" for key, shape in wanted.items()
              if key in found and found[key] != shape]  # fmt: skip
    wrong += [f"has {key}, too" for key in found if key not in wanted and not _is_left_out(key)]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{path} is no {name}: it {wrong[0]}{more}; {_overlay(path)}")


def _is_left_out(key):
    """Whether a tensor belongs to what a detector does not use."""
    return key.endswith("num_batches_tracked") or UNUSED.match(key)


def _tensors(weights: str) -> dict[str, tuple[int, ...]] | None:
    """Name of each tensor in a file -> its shape; None if that cannot be read."""
    try:
        content: Any = read(local_weights(weights).removesuffix(HEURISTICS))
        model = plain(content.get("model", content))
        return {name: tuple(value.shape) for name, value in model.items() if hasattr(value, "shape")}
    except (*UNREADABLE, OSError):
        return None


def _overlay(path):
    """What to do."""
    config = Path(path).with_suffix(".yaml")
    if not is_remote(path) and config.is_file():
        return f"these weights were converted with a config of their own, add --overlay {config}"
    return "use the config lines that tools/convert_to_d2.py has printed for these weights"


def _text(shape):
    return " x ".join(map(str, shape)) or "1 number"

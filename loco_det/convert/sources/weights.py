"""The weights of an encoder, whatever their type and format was: dense, complete, finite float32 tensors on the CPU."""

from collections import Counter

import numpy as np
import torch

from pretrain.encoders import EncoderSpec

from .architecture import COUNTER, reference
from .messages import first_few


def dense_tensor(name: str, value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A tensor or an array as a dense tensor of the CPU with data of its own; raises ValueError for others."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
            raise ValueError(f"{name} holds {value.dtype} values, expected floating point")
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=False))
    if value.device.type != "cpu" or value.layout != torch.strided or value.is_nested:
        raise ValueError(f"{name} is a {value.layout} tensor on {value.device}, expected a dense one with data")
    if not (value.is_floating_point() or name.endswith(COUNTER)):
        raise ValueError(f"{name} holds {value.dtype} values, expected floating point")
    return value


def complete(parts: dict[str, torch.Tensor], encoder: EncoderSpec) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Give every tensor torchvision's type and order, and add the counters of a checkpoint that has none.

    Half and double precision become float32. A missing ``num_batches_tracked`` becomes 0, as torch itself reads such
    files. All are kept because of Detectron2's two frozen norms: BatchNorm frozen by FREEZE_AT, as in our recipes,
    reports missing keys without them, while NORM: FrozenBN ignores them but for a message about unexpected keys.

    Args:
        parts: the encoder's names -> dense tensors; only counters may be missing.
        encoder: which it is.

    Returns:
        tuple: the state dict, and notes on what was changed.

    Raises:
        ValueError: if a tensor has fewer values than its shape says, or values that are not finite.
    """
    state_dict: dict[str, torch.Tensor] = {}
    broken: list[str] = []
    types: Counter[str] = Counter()
    for name, meta in reference(encoder).items():
        tensor = parts.get(name)
        if tensor is None:
            tensor = torch.zeros(meta.shape)
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ValueError(f"{name} has fewer values than its shape ({tuple(tensor.shape)}) says")
        if not name.endswith(COUNTER) and tensor.dtype != meta.dtype:
            types[str(tensor.dtype).removeprefix("torch.")] += 1
        tensor = state_dict[name] = tensor.detach().to(meta.dtype).contiguous()
        if not torch.isfinite(tensor).all():
            broken.append(name)
    if broken:
        raise ValueError(f"NaN or infinite values in {len(broken)} tensors ({first_few(broken)})")
    return state_dict, [f"{count} tensors were {kind}, and are now float32" for kind, count in types.items()]

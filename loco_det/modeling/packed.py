"""Feature maps in bytes: a quarter of float32's memory."""

from typing import NamedTuple

import torch

LEVELS = 255  # steps from the lowest to the highest value of a channel


class Packed(NamedTuple):
    """A feature map whose channels are stored in 256 levels each.

    A value is off by half a step at most, which is 0.2 % of its channel's range in this image. The lowest value is
    kept to the bit: 0 after a ReLU.

    Attributes:
        values: (C, H, W) uint8.
        low: (C,) float32, the lowest value of each channel.
        step: (C,) float32, the difference of two neighbouring levels.
    """

    values: torch.Tensor
    low: torch.Tensor
    step: torch.Tensor


def pack(features: torch.Tensor) -> Packed:
    """Round a feature map, (C, H, W) float, to the levels of its channels; ValueError if a value is not finite."""
    low, high = features.amin((1, 2)).float(), features.amax((1, 2)).float()
    step = (high - low) / LEVELS
    if not torch.isfinite(step).all():
        raise ValueError("the backbone's features are not finite: its weights are damaged, or not for these images")
    step = torch.where(step > 0, step, torch.ones_like(step))  # of a channel that is the same everywhere
    values = ((features.float() - low[:, None, None]) / step[:, None, None]).round_().clamp_(0, LEVELS)
    return Packed(values.to(torch.uint8), low, step)


def unpack(packed: Packed, device: torch.device | str = "cpu") -> torch.Tensor:
    """The feature map, (C, H, W) float32 on ``device``."""
    values, low, step = (part.to(device, non_blocking=True) for part in packed)
    return torch.addcmul(low[:, None, None], values.float(), step[:, None, None])

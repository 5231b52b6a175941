"""Noise, as tensors and as images."""

import numpy as np
import torch
from PIL import Image


def noise(*shape, seed=0, **kwargs):
    """Normal noise of a seed of its own; more arguments are of ``Tensor.to``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**kwargs)


def write_noise_images(folder, count, size=(40, 40)):
    """Write ``00.png`` and so on to a folder, which is returned: noise of ``size`` (H, W)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder

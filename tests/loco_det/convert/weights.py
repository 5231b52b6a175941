"""Weights to convert, and whether they came through."""

import torch

from loco_det.convert.sources.architecture import reference
from pretrain.encoders import parse_encoder

SMALL = "resnet18x0.25"  # converts in no time


def random_weights(arch, seed=0):
    """A whole state dict whose norms are far from the identity, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)

    def value(meta):
        if meta.dim() < 2:
            return torch.rand(meta.shape, generator=generator) + 0.5 if meta.dim() else torch.tensor(7)
        return torch.randn(meta.shape, generator=generator) * (2 / meta[0].numel()) ** 0.5

    return {name: value(meta) for name, meta in reference(parse_encoder(arch)).items()}


def save(content, folder):
    """Path of a checkpoint that holds it."""
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def same(got, wanted):
    """Whether two state dicts have the same names in the same order, types and bits."""
    return list(got) == list(wanted) and all(
        got[name].dtype == wanted[name].dtype and torch.equal(got[name], wanted[name]) for name in wanted
    )

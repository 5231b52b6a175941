"""The proof of a conversion: Detectron2's backbone, loaded from the file, computes what the source network computes.

Names and shapes prove little. A stride in the wrong convolution (STRIDE_IN_1X1), swapped colour channels or exchanged
norms have the same shapes, load silently and cost several AP, so the features themselves are compared.
"""

import logging
import math
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from pretrain.encoders import STAGE_NAMES, build_encoder

from .architecture import some

TOLERANCE = 1e-5  # relative; float32 rounding of the same sums in another order. The wrong stride gives 0.1.
PIXEL_MEAN = (123.675, 116.280, 103.530)  # ImageNet's RGB mean and std, in 0..255, as torchvision's weights expect
PIXEL_STD = (58.395, 57.120, 57.375)


class VerificationError(RuntimeError):
    """The written file does not reproduce the source network."""


class Difference(NamedTuple):
    """Largest difference of two feature maps: absolute, and relative to the source's largest magnitude."""

    absolute: float
    relative: float


def verify(path, arch, state_dict):
    """Compare a converted file with its source, in eval mode and with BatchNorm in training mode.

    Args:
        path: the converted file.
        arch: one of ``pretrain.encoders.RESNETS``.
        state_dict: the source's complete torchvision-style state dict.

    Returns:
        dict: "eval" and "train" -> {stage name: Difference} for res2..res5.

    Raises:
        VerificationError: if Detectron2 cannot fill its backbone exactly from the file, if a stage differs by more
            than ``TOLERANCE``, or if a stage is all zero or not finite, so that comparing it would prove nothing.
    """
    with torch.random.fork_rng(devices=[]):  # building networks draws random numbers that belong to the caller
        source = build_encoder(arch)
        backbone = build_backbone(_detectron2_config(arch), ShapeSpec(channels=3))
    source.load_state_dict(state_dict, strict=True)
    _load(backbone, path)
    images = test_images()
    differences = {}
    with torch.no_grad():
        for mode in ("eval", "train"):  # training mode last: it updates the running statistics
            wanted = source.train(mode == "train")(images)
            got = backbone.train(mode == "train")(images)
            differences[mode] = {name: _compare(name, mode, wanted[name], got[name]) for name in STAGE_NAMES}
    return differences


def test_images():
    """Two images of smooth noise with some grain, normalised; the same on every call.

    Returns:
        tensor: (2, 3, 97, 130) float32. The sides are odd somewhere on the way down, where padding and stride show.
    """
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(2, 3, 7, 9, generator=generator), size=(97, 130), mode="bicubic")
    grain = torch.rand(2, 3, 97, 130, generator=generator)
    images = 255 * (0.85 * smooth + 0.15 * grain).clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (images - mean) / std


test_images.__test__ = False  # not a test, whatever pytest makes of the name


def _detectron2_config(arch):
    """The config that torchvision-style weights need, for the backbone alone."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = int(arch.removeprefix("resnet"))
    if cfg.MODEL.RESNETS.DEPTH < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64  # Detectron2's default, 256, is that of bottleneck blocks
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGE_NAMES)
    return cfg


class _Checkpointer(DetectionCheckpointer):
    """Detectron2's own loading, which only warns of what does not fit; the list is kept here."""

    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def _load(backbone, path):
    """Fill ``backbone`` from the file by DetectionCheckpointer, every place in it and with every entry of the file."""
    checkpointer = _Checkpointer(backbone)
    try:
        with _quiet("detectron2.checkpoint", "fvcore.common.checkpoint"):
            checkpointer.load(str(path))
    except Exception as error:  # whatever stops Detectron2 here would stop it in training
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VerificationError(f"Detectron2 cannot load the converted file ({reason})") from error
    missing, unexpected, shapes = checkpointer.incompatible
    for what, names in (("of another shape", [s[0] for s in shapes]), ("missing", missing), ("left over", unexpected)):
        if names:
            raise VerificationError(f"{len(names)} entries {what} in Detectron2's backbone ({some(names)})")


@contextmanager
def _quiet(*names):
    """Silence loggers: what they would say is checked, and raised in one line."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(name, mode, wanted, got):
    """Difference of one stage's features, both (B, C, H, W); raises VerificationError if they are not equal."""
    if wanted.shape != got.shape:
        raise VerificationError(f"{name} is {tuple(got.shape)} in Detectron2, {tuple(wanted.shape)} in the source")
    scale, absolute = wanted.abs().max().item(), (wanted - got).abs().max().item()
    if not math.isfinite(scale):
        raise VerificationError(f"{name} of the source network is not finite ({mode} mode), nothing can be compared")
    if scale == 0:
        raise VerificationError(f"{name} of the source network is all zero ({mode} mode), nothing can be compared")
    difference = Difference(absolute, absolute / scale)
    if not difference.relative <= TOLERANCE:  # so that NaN is refused as well
        raise VerificationError(
            f"{name} differs from the source network by {difference.relative:.3g} relative ({mode} mode), "
            f"more than rounding ({TOLERANCE:g})"
        )
    return difference

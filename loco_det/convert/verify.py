"""The proof of a conversion: Detectron2's backbone, loaded from the file, computes what the source network computes.

Names and shapes prove little. A stride in the wrong convolution (STRIDE_IN_1X1), swapped colour channels or exchanged
norms have the same shapes, load silently and cost several AP, so the features themselves are compared.
"""

import logging
import math
import os
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer

from pretrain.encoders import EncoderSpec

from .networks import detectron2_network, source_network
from .sources.architecture import COUNTER
from .sources.conventions import Conventions
from .sources.messages import first_few

Features = dict[str, dict[str, torch.Tensor]]  # mode -> stage name -> (B, C, H, W)
TOLERANCE = 1e-5  # relative; float32 rounding of the same sums in another order. The wrong stride gives 0.1.


class VerificationError(RuntimeError):
    """The written file does not reproduce the source network."""


class Difference(NamedTuple):
    """Largest difference of two feature maps: absolute, and relative to the source's largest magnitude."""

    absolute: float
    relative: float


def source_features(encoder: EncoderSpec, state_dict: dict[str, torch.Tensor], conventions: Conventions) -> Features:
    """What the source network computes for the test images.

    Args:
        encoder: which it is.
        state_dict: the encoder's, complete; left as it is.
        conventions: what it expects of its surroundings.

    Returns:
        dict: mode ("eval", "opened", "train") -> {stage name: features, (2, C, H, W)}; see ``_features``.
    """
    # The large tensors are shared with the caller, the norms would be changed
    own = {name: tensor.clone() if tensor.dim() < 2 else tensor for name, tensor in state_dict.items()}
    return _features(source_network(encoder, own, conventions), conventions)


def verify(
    path: str | os.PathLike, config: dict, conventions: Conventions, wanted: Features
) -> dict[str, dict[str, Difference]]:
    """Compare Detectron2's backbone, loaded from a file, with the source network, in eval and in training mode.

    Args:
        path: of the written file, which Detectron2 reads.
        config: what Detectron2 needs for the weights (``networks.detectron2_config``).
        conventions: what the network expects of its surroundings.
        wanted: of :func:`source_features`.

    Returns:
        dict: "eval" and "train" -> {stage name: Difference} for every stage.

    Raises:
        VerificationError: if Detectron2 cannot fill its backbone exactly from the file, if a stage differs by more
            than ``TOLERANCE``, or if a stage is all zero or not finite, so that comparing it would prove nothing.
    """
    backbone = detectron2_network(config)
    fill(backbone, path)
    return compare(wanted, _features(backbone, conventions))


def compare_maps(wanted: Features, got: Features) -> dict[str, dict[str, Difference]]:
    """As :func:`compare`, by whatever modes there are."""
    return {
        mode: {name: _compare(name, mode, features, got[mode][name]) for name, features in stages.items()}
        for mode, stages in wanted.items()
    }


def compare(wanted: Features, got: Features) -> dict[str, dict[str, Difference]]:
    """Differences of all features by mode and stage; raises VerificationError as :func:`verify`."""
    differences = compare_maps(wanted, got)
    return {mode: differences[mode] for mode in ("eval", "train")}


def _features(network, conventions):
    """Every stage's features, by mode; the norms of ``network`` change.

    The mode "train" has the norms in training mode and all else in evaluation mode.

    The mode "opened" is evaluation with all zeros among the norms' weights set to one. Where training begins with zeros
    at the end of every residual branch (``zero_init_residual``), the branch of an early checkpoint is silent, and could
    hold anything.
    """
    images = test_images(conventions)
    with torch.no_grad():
        features = {"eval": dict(network.eval()(images)), "opened": {}}
        scales = [module.weight for module in network.modules() if hasattr(module, "running_mean")]
        if any((scale == 0).any() for scale in scales):
            for scale in scales:
                scale[scale == 0] = 1
            features["opened"] = dict(network(images))
        network.train()
        for module in network.modules():  # the norms only: dropout of a user's own encoder is random
            module.training = module.training and hasattr(module, "running_mean")
        features["train"] = dict(network(images))  # last, because it updates the running statistics
    return features


def test_images(conventions: Conventions) -> torch.Tensor:
    """Two images of smooth noise with some grain, normalised; the same on every call.

    Args:
        conventions: whose mean and std they are normalised with.

    Returns:
        tensor: (2, 3, 97, 130) float32. The sides are odd somewhere on the way down, where padding and stride show.
    """
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(2, 3, 7, 9, generator=generator), size=(97, 130), mode="bicubic")
    grain = torch.rand(2, 3, 97, 130, generator=generator)
    images = 255 * (0.85 * smooth + 0.15 * grain).clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in conventions[1:3])
    return (images - mean) / std


test_images.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test by its name


class _Checkpointer(DetectionCheckpointer):
    """Detectron2's own loading, which only warns of what does not fit; the list is kept here."""

    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def fill(backbone: torch.nn.Module, path: str | os.PathLike) -> None:
    """Fill a backbone from a file by DetectionCheckpointer, every place in it and with every entry of the file.

    Raises:
        VerificationError: if Detectron2 cannot load the file, or anything is missing, left over or of another shape.
    """
    checkpointer = _Checkpointer(backbone)
    try:
        with _quiet("detectron2.checkpoint", "fvcore.common.checkpoint"):
            checkpointer.load(str(path))
    except Exception as error:  # whatever stops Detectron2 here would stop it in training
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VerificationError(f"Detectron2 cannot load the converted file ({reason})") from error
    missing, unexpected, shapes = checkpointer.incompatible
    # torch itself fills in a counter that is missing, so that it keeps the value that it was built with
    missing += [n for n, tensor in backbone.state_dict().items() if n.endswith(COUNTER) and (tensor == -1).all()]
    for what, names in (("of another shape", [s[0] for s in shapes]), ("missing", missing), ("left over", unexpected)):
        if names:
            raise VerificationError(f"{len(names)} entries {what} in Detectron2's backbone ({first_few(names)})")


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

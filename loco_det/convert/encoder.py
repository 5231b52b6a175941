"""A checkpoint's encoder as a module: images in, the features of all stages and blockwise expansions out."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode as CN
from torch import nn

from pretrain.encoders import Encoder, features_of

from .expansions import expansions_of_blockwise, expansions_of_ours
from .networks import source_network
from .sources.checkpoint_file import errors_naming, read_checkpoint
from .sources.choose import choose
from .sources.conventions import Conventions
from .sources.own_code import find_own_code, own_encoder
from .sources.search import find_encoders
from .sources.source import extract, parse_expected
from .sources.source_type import Source
from .timm.search import find_networks


class Readable(NamedTuple):
    """An encoder and the normalisation of its input.

    Attributes:
        encoder: :class:`ReadableEncoder`: frozen, in eval mode, float32, on the CPU.
        conventions: mean and std of its images, RGB whatever the checkpoint's own order is.
        source: what the checkpoint was found to be.
    """

    encoder: "ReadableEncoder"
    conventions: Conventions
    source: Source

    def summary(self) -> str:
        """What the checkpoint was taken for, in a line."""
        source = self.source
        return f"{source.encoder} of {source.project} at {source.location!r}, {source.conventions.format} pixels"

    def description(self) -> dict:
        """What identifies this network in a file of results: dict, with the file's "path" and "sha256"."""
        source = self.source
        text = {"source": source.layout, "location": source.location, "arch": source.arch}
        return {"path": str(source.path), "sha256": source.sha256, **text, **source.conventions._asdict()}


class ReadableEncoder(nn.Module):
    """An encoder's stages, and on top of some a blockwise expansion: conv, BN, ReLU ("CbE", arXiv 2302.01647).

    Attributes:
        feature_names: what :meth:`forward` returns, in this order: "res2" and so on, then "res2+expansion" and so on.
    """

    def __init__(self, encoder: Encoder, expansions: Mapping[str, nn.Module], bgr: bool = False) -> None:
        """
        Args:
            encoder: with ``stages`` and ``stage_names`` (:class:`pretrain.encoders.Encoder`).
            expansions: dict from the name of a stage to a module.
            bgr: whether the encoder is used to images with blue first.
        """
        super().__init__()
        self.encoder, self.expansions, self.bgr = encoder, nn.ModuleDict(expansions), bgr
        self.feature_names = (*encoder.stage_names, *(f"{name}+expansion" for name in expansions))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: (B, 3, H, W) RGB, normalised.

        Returns:
            dict: name -> features, (B, C, H', W'). What the blockwise paper probes is an expansion's mean over H', W'.
        """
        features = features_of(self.encoder, images.flip(1) if self.bgr else images)
        return features | {f"{name}+expansion": module(features[name]) for name, module in self.expansions.items()}


def load_encoder(
    path: str | os.PathLike,
    arch: str = "auto",
    source: str = "auto",
    ema: bool = False,
    prefix: str | None = None,
    unsafe: bool = False,
    config_file: str | os.PathLike | None = None,
) -> Readable:
    """The encoder of any checkpoint that the converter takes; it computes what the source network computes.

    Beside the stages it has the blockwise expansions of the file: our own pretraining's (MODEL.DECODER.EXPANSION, where
    it is the first thing in the decoder and the decoder is on a whole stage) and those of blockwise Barlow Twins
    (``pool_conv_block_1`` to ``_4`` in model.py of github.com/shoaibahmed/blockwise_ssl).

    Our checkpoints of an encoder that is code of the user's own (MODEL.ENCODER package.module.function) are read if
    ``arch`` says the same, because a file never decides which code runs.

    Args:
        path, arch, source, ema, prefix, unsafe, config_file: as :func:`load_source`.

    Returns:
        Readable.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be downloaded.
        ValueError: if it cannot be read, or has no such encoder; one line that begins with the path.
    """
    expected = parse_expected(arch)
    file = read_checkpoint(path, unsafe, config_file)
    _refuse_others(file)
    ours, expansions = prefix is None and file.is_ours, {}
    with errors_naming(file.path):
        if code := find_own_code(file, source, ema, prefix):
            found, encoder = own_encoder(file, code, expected)
        else:
            choice = choose(file.content, source, ema, prefix, file.path)
            found, state_dict = extract(file, choice, expected)
            encoder = source_network(found.encoder, state_dict, found.conventions)
            if found.layout == "blockwise":
                expansions = expansions_of_blockwise(choice, encoder)
        if ours:
            expansions = expansions_of_ours(file, encoder)
    conventions, bgr = found.conventions, found.conventions.format == "BGR"
    if bgr:
        conventions = conventions._replace(format="RGB", mean=conventions.mean[::-1], std=conventions.std[::-1])
    readable = ReadableEncoder(encoder, expansions, bgr).eval().requires_grad_(False)
    return Readable(readable, conventions, found)


def _refuse_others(file):
    """ValueError for a network that is only converted: its maps are not read out."""
    with errors_naming(file.path):
        if networks := [] if file.is_ours or find_encoders(file.content) else find_networks(file.content):
            raise ValueError(
                f"{networks[0].kind} at {networks[0].location or 'the top'!r}: the converter takes it, and "
                "readouts take ResNets and the encoders of pretraining"
            )


def add_encoder_config(cfg: CN) -> None:
    """Add to a config with MODEL.WEIGHTS the choice of what is read from that file, :func:`load_encoder`'s options."""
    cfg.MODEL.SOURCE = CN()
    cfg.MODEL.SOURCE.LAYOUT = "auto"  # refuse any other than this of tools/convert_to_d2.py --list-sources
    cfg.MODEL.SOURCE.ENCODER = "auto"  # refuse any other than this; the package.module.function of your own, to run it
    cfg.MODEL.SOURCE.EMA = False  # the network of the moving average (EMA, key, teacher)
    cfg.MODEL.SOURCE.PREFIX = ""  # of the encoder's names, for a project that --list-sources does not have
    cfg.MODEL.SOURCE.CONFIG_FILE = ""  # of the run, for a checkpoint of Detectron2's; "": config.yaml beside it
    cfg.MODEL.SOURCE.UNSAFE_LOAD = False  # unpickle whatever is in the file, which can run code that it brings along


def load_encoder_of(cfg: CN) -> Readable:
    """:func:`load_encoder` for a config.

    Args:
        cfg: with MODEL.WEIGHTS and the keys of :func:`add_encoder_config`.

    Returns:
        Readable.

    Raises:
        ValueError, FileNotFoundError: as :func:`load_encoder`; ValueError if keys contradict each other.
    """
    keys = cfg.MODEL.SOURCE
    if keys.PREFIX and (keys.EMA or keys.LAYOUT != "auto"):
        raise ValueError("MODEL.SOURCE.PREFIX names one network by itself: leave out LAYOUT and EMA")
    options = {"arch": keys.ENCODER, "source": keys.LAYOUT, "ema": keys.EMA, "unsafe": keys.UNSAFE_LOAD}
    options |= {"prefix": keys.PREFIX or None, "config_file": keys.CONFIG_FILE or None}
    try:
        readable = load_encoder(cfg.MODEL.WEIGHTS, **options)
    except ValueError as error:
        raise ValueError(_as_keys(str(error))) from None
    readable.source.notes[:] = map(_as_keys, readable.source.notes)
    return readable


def _as_keys(line):
    """A line of the converter's with keys of the config for its command line's options."""
    options = {"--ema": "EMA", "--prefix": "PREFIX", "--config-file": "CONFIG_FILE", "--unsafe-load": "UNSAFE_LOAD"}
    line = re.sub(r"python tools/convert_to_d2\.py .* OUT\.pkl (?=--prefix)", "", line)
    return re.sub("|".join(options), lambda option: f"MODEL.SOURCE.{options[option[0]]}", line)

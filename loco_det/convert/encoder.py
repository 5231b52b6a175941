"""A checkpoint's encoder, ready to be read out: images in, the features of all stages and blockwise expansions out."""

import re
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode as CN
from torch import nn

from pretrain.encoders import build_encoder, is_own_code
from pretrain.files.atomic import sha256_of
from pretrain.files.safe_load import read
from pretrain.files.text import for_terminal

from .choose import choose
from .huggingface import weights_file
from .layouts import Conventions
from .networks import source_network
from .search import state_dicts
from .sources import Source, load_source
from .stated import FORMAT, stated_by


class Readable(NamedTuple):
    """An encoder and what it has to be shown.

    Attributes:
        encoder: :class:`ReadableEncoder`: frozen, in eval mode, float32, on the CPU.
        conventions: mean and std of its images, RGB whatever the checkpoint's own order is.
        source: what the checkpoint was found to be.
    """

    encoder: nn.Module
    conventions: Conventions
    source: Source

    def summary(self):
        """What the checkpoint was taken for, in a line."""
        source = self.source
        return f"{source.arch} of {source.project} at {source.location!r}, {source.conventions.format} pixels"

    def description(self):
        """What tells this network from others, for a file of results: dict, with the file's "path" and "sha256"."""
        source = self.source
        text = {"source": source.layout, "location": source.location, "arch": source.arch}
        return {"path": str(source.path), "sha256": sha256_of(source.path), **text, **source.conventions._asdict()}


class ReadableEncoder(nn.Module):
    """An encoder's stages, and on top of some a blockwise expansion: conv, BN, ReLU ("CbE", arXiv 2302.01647).

    Attributes:
        feature_names: what :meth:`forward` returns, in this order: "res2" and so on, then "res2+expansion" and so on.
    """

    def __init__(self, encoder, expansions, bgr=False):
        """
        Args:
            encoder: with ``stages`` and ``stage_names`` (:class:`pretrain.encoders.Encoder`).
            expansions: dict from the name of a stage to a module.
            bgr: whether the encoder is used to images with blue first.
        """
        super().__init__()
        self.encoder, self.expansions, self.bgr = encoder, nn.ModuleDict(expansions), bgr
        self.feature_names = (*encoder.stage_names, *(f"{name}+expansion" for name in expansions))

    def forward(self, images):
        """
        Args:
            images: (B, 3, H, W) RGB, normalised.

        Returns:
            dict: name -> features, (B, C, H', W'). What the blockwise paper probes is an expansion's mean over H', W'.
        """
        features, x = {}, images.flip(1) if self.bgr else images
        for name, stage in zip(self.encoder.stage_names, self.encoder.stages, strict=True):
            x = features[name] = stage(x)
        return features | {f"{name}+expansion": module(features[name]) for name, module in self.expansions.items()}


def load_encoder(path, arch="auto", source="auto", ema=False, prefix=None, unsafe=False, config_file=None):
    """The encoder of any checkpoint that the converter takes; it computes what the source network computes.

    Beside the stages it has the blockwise expansions of the file: our own pretraining's (MODEL.DECODER.EXPANSION, where
    it is the first thing in the decoder and the decoder is on a whole stage) and those of blockwise Barlow Twins
    (``pool_conv_block_1`` to ``_4`` in model.py of github.com/shoaibahmed/blockwise_ssl).

    It also takes what the converter refuses: our checkpoints of an encoder that is code of the user's own
    (MODEL.ENCODER package.module.function), if ``arch`` says the same, because no file shall decide what code runs.

    Args:
        path, arch, source, ema, prefix, unsafe, config_file: as :func:`load_source`.

    Returns:
        Readable.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or has no such encoder; one line that begins with the path.
    """
    with _naming(path):
        path, notes = weights_file(path)
        content = read(path, unsafe)
        ours = prefix is None and isinstance(content, dict) and content.get("format") == FORMAT
        own = ours and source in ("auto", "loco-det") and not ema and is_own_code(content.get("encoder"))
        if own:
            encoder = _own_encoder(content, arch)
            conventions = Conventions("RGB", *(stated_by(content, path)[1] or ()))
            found = Source(Path(path), arch, "loco-det", "ours", "model/encoder.", {}, conventions, {})
    if not own:
        found, state_dict = load_source(path, arch, source, ema, prefix, unsafe, config_file)
        found.notes[:0] = notes
        encoder = source_network(found.arch, state_dict, found.conventions)
    with _naming(path):
        places = {}
        if ours:
            weights, places = _weights(content), {name: f"decoders.{name}." for name in encoder.stage_names}
        elif found.layout == "blockwise":
            _, one, _ = choose(content, source)
            names = enumerate(encoder.stage_names, 1)
            weights, places = one.weights, {name: f"{one.prefix}pool_conv_block_{i}." for i, name in names}
        expansions = {}
        for (name, place), channels in zip(places.items(), encoder.channels, strict=bool(places)):
            parts = {n.removeprefix(place): value for n, value in weights.items() if n.startswith(place)}
            if "1.running_mean" in parts:  # else no expansion: in our decoders pooling, a conv block or a copied stage
                expansions[name] = _expansion(parts, channels)
    conventions, bgr = found.conventions, found.conventions.format == "BGR"
    if bgr:
        conventions = conventions._replace(format="RGB", mean=conventions.mean[::-1], std=conventions.std[::-1])
    readable = ReadableEncoder(encoder, expansions, bgr).eval().requires_grad_(False)
    return Readable(readable, conventions, found)


def add_encoder_config(cfg):
    """Add to a config with MODEL.WEIGHTS the choice of what is read from that file, :func:`load_encoder`'s options."""
    cfg.MODEL.SOURCE = CN()
    cfg.MODEL.SOURCE.LAYOUT = "auto"  # refuse any other than this of tools/convert_to_d2.py --list-sources
    cfg.MODEL.SOURCE.ENCODER = "auto"  # refuse any other than this; the package.module.function of your own, to run it
    cfg.MODEL.SOURCE.EMA = False  # the network of the moving average (EMA, key, teacher)
    cfg.MODEL.SOURCE.PREFIX = ""  # of the encoder's names, for a project that --list-sources does not have
    cfg.MODEL.SOURCE.CONFIG_FILE = ""  # of the run, for a checkpoint of Detectron2's; "": config.yaml beside it
    cfg.MODEL.SOURCE.UNSAFE_LOAD = False  # unpickle whatever is in the file, which can run code that it brings along


def load_encoder_of(cfg):
    """:func:`load_encoder` for a config with the keys of :func:`add_encoder_config`.

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


@contextmanager
def _naming(path):
    """Let errors begin with the path, as those of :func:`load_source` do."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(for_terminal(f"{path}: {error}")) from None


def _weights(content):
    """Names, without wrappers, and tensors of the learner in one of our checkpoints."""
    return next((weights for _, weights, _ in state_dicts(content.get("model"))), {})


def _own_encoder(content, arch):
    """The user's own encoder with the weights of our checkpoint."""
    name = content["encoder"]
    if arch != name:
        raise ValueError(
            f"its encoder is {name!r}, code of your own, which is run only if asked for by that name, not by {arch!r} "
            "(MODEL.SOURCE.ENCODER)"
        )
    encoder = build_encoder(name)
    weights = {n.removeprefix("encoder."): t for n, t in _weights(content).items() if n.startswith("encoder.")}
    return _filled(encoder, weights, f"its weights are not those of what {name!r} builds").float()


def _filled(module, weights, fault):
    """``module`` with exactly these weights."""
    try:
        module.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{fault} ({' '.join(str(error).split())})") from None
    if broken := [name for name, value in module.state_dict().items() if not torch.isfinite(value).all()]:
        raise ValueError(f"NaN or infinite values in {len(broken)} tensors ({broken[0]})")
    return module


def _expansion(parts, channels):
    """A decoder's or ``pool_conv_block``'s conv, BN and ReLU; what follows, pooling or an MLP, is left out.

    Args:
        parts: names, as in an ``nn.Sequential`` of conv, BN and so on -> tensors.
        channels: of the stage below.
    """
    parts = {name: value for name, value in parts.items() if re.match(r"[01]\.", name)}
    shape = parts["0.weight"].shape if "0.weight" in parts else ()
    if len(shape) != 4 or shape[1] != channels or shape[2] != shape[3]:
        raise ValueError(f"an expansion's conv is {tuple(shape)}, expected a square one of {channels} input channels")
    with torch.device("meta"):  # no random numbers
        conv = nn.Conv2d(channels, shape[0], shape[2], padding=shape[2] // 2, bias=False)  # published: 1x1, also 3x3
        module = nn.Sequential(conv, nn.BatchNorm2d(shape[0]), nn.ReLU())
    return _filled(module, parts, "an expansion is not a conv and BN").float()

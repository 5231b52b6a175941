"""A checkpoint file -> its layout -> one encoder's state dict: the right network of the file, whole and checked."""

import os
import re
from collections import Counter
from typing import TYPE_CHECKING

import torch

from pretrain.encoders import BUILDERS, EncoderSpec, NamedEncoder, ResNetShape, parse_encoder

from ..timm.search import find_networks, foreign_network
from . import detectron2_runs, huggingface
from .architecture import infer_encoder, relative
from .checkpoint_file import CheckpointFile, errors_naming, read_checkpoint
from .choose import Choice, choose
from .messages import first_few
from .metadata import check_agreement, metadata_of, parse_name, pretraining_of
from .openmmlab import openmmlab_pixels
from .own_code import find_own_code, own_encoder
from .search import find_encoders
from .source_type import Source
from .weights import complete, dense_tensor

if TYPE_CHECKING:
    from ..timm.source import TimmWeights


def load_source(
    path: str | os.PathLike,
    arch: str = "auto",
    source: str = "auto",
    ema: bool = False,
    prefix: str | None = None,
    unsafe: bool = False,
    config_file: str | os.PathLike | None = None,
) -> tuple[Source, dict[str, torch.Tensor]]:
    """Read the encoder of a checkpoint.

    Args:
        path: the file: .pth, .pt, .tar, .ckpt, .safetensors, .pkl, .npz; or a folder of Hugging Face's transformers; an
            address; or, of an encoder that is no Detectron2's, the name of a published one.
        arch: the encoder it must hold, a name for ``pretrain.encoders.build_encoder``, or "auto". A checkpoint of ours
            whose encoder is a user's own code is read only if this names it: then that code runs.
        source: the layout it must have, a name of ``layouts.LAYOUTS``, or "auto".
        ema: take the network of the moving average (momentum, key, target, teacher).
        prefix: of the encoder's names as they are in the file, for a project without a layout.
        unsafe: unpickle whatever is in the file, which can run code that it brings along.
        config_file: of the run, for Detectron2's checkpoints; None: the ``config.yaml`` beside the file.

    Returns:
        tuple: Source, and the state dict: names of ``pretrain``'s encoder (a ResNet's are torchvision's), or timm's ->
        tensors on the CPU, complete, float32 but for BN's counters.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or has no such encoder; one line that begins with the path.
    """
    file = read_checkpoint(path, unsafe, config_file, by_name=source != "detectron2")
    if network := load_timm(file, arch, source, ema, prefix):
        return network[0], network[1].weights
    return load_source_of(file, arch, source, ema, prefix)


def load_timm(
    file: CheckpointFile, arch: str = "auto", source: str = "auto", ema: bool = False, prefix: str | None = None
) -> tuple[Source, "TimmWeights"] | None:
    """The network of a checkpoint that timm can compute, and no ResNet; None if it has none.

    Args:
        file: the checkpoint.
        arch, source, ema, prefix: as :func:`load_source`.

    Raises:
        ValueError: if it cannot be converted; one line that begins with the path.
    """
    with errors_naming(file.path):
        if find_encoders(file.content):
            return None
        networks = find_networks(file.content)
        if any(one.prefix.endswith("network.") for one in networks) and not file.is_ours:
            raise ValueError(
                "a Detectron2 file with a network of timm, whose names are timm's own behind 'network.': it is "
                "MODEL.WEIGHTS as it is, and timm loads it without that prefix"
            )
        if source == "detectron2" or (file.is_ours and not networks):
            return None
        if not (networks or _may_be_timms(file, arch)):
            if network := foreign_network(file.content):
                raise ValueError(network)
            return None
        from ..timm.source import load_network  # imports timm, which takes seconds

        return load_network(file, arch, source, ema, prefix)


def _may_be_timms(file, arch):
    """Whether the user, or config.json beside the file, names a network that is no encoder of ``pretrain``."""
    one = metadata_of(file, timm=True).encoder if arch == "auto" else parse_encoder(arch.split(".")[0])
    return isinstance(one, NamedEncoder) and one.name not in BUILDERS and arch.count(".") < 2


def load_source_of(
    file: CheckpointFile, arch: str = "auto", source: str = "auto", ema: bool = False, prefix: str | None = None
) -> tuple[Source, dict[str, torch.Tensor]]:
    """As :func:`load_source`, of a checkpoint that was read and has a ResNet or an encoder of ``pretrain``."""
    expected = parse_expected(arch)
    with errors_naming(file.path):
        if code := find_own_code(file, source, ema, prefix):
            found, own = own_encoder(file, code, expected)
            return found, own.state_dict()
        return extract(file, choose(file.content, source, ema, prefix, file.path), expected)


def parse_expected(arch: str) -> EncoderSpec | None:
    """The encoder that a user expects; None for "auto"."""
    return None if arch == "auto" else parse_encoder(arch)


def extract(
    file: CheckpointFile, choice: Choice, expected: EncoderSpec | None = None
) -> tuple[Source, dict[str, torch.Tensor]]:
    """The encoder that was chosen of a checkpoint.

    Args:
        file: the checkpoint.
        choice: its layout, and which of its networks.
        expected: refuse any other encoder than this.

    Returns:
        tuple: as :func:`load_source`.

    Raises:
        FileNotFoundError: if there is no such config of a Detectron2 run.
        ValueError: if it is not the encoder expected, or cannot be converted; one line without the path.
    """
    layout, found, has_ema = choice
    names, inside, outside = found.split()
    _check_heads(choice, inside)
    if file.config_file and layout.conventions:
        raise ValueError(f"laid out as {layout.name}: --config-file is for checkpoints of Detectron2 only")
    parts = {name: dense_tensor(name, found.weights[found.prefix + old]) for name, old in names.items()}
    encoder = infer_encoder(parts)
    conventions, claimed, notes = _surroundings(file, choice, encoder)
    if isinstance(encoder, ResNetShape):  # shapes do not show how it pads
        encoder = encoder._replace(same=layout.same or (isinstance(claimed, ResNetShape) and claimed.same))
    check_agreement(claimed, encoder, found.location)
    if not (isinstance(encoder, ResNetShape) and encoder.bottleneck):
        conventions = conventions._replace(stride_in_1x1=False)  # of no meaning to blocks of another kind
    if expected not in (None, encoder):
        raise ValueError(f"this is a {encoder}, not the {expected} that was asked for")
    state_dict, changed = complete(parts, encoder)
    notes = [*file.notes, *notes, *changed]
    if has_ema:
        notes.append("the file has the network of a moving average (EMA, teacher), too: --ema takes that one")
    return Source(
        path=file.path,
        encoder=encoder,
        layout=layout.name,
        project=layout.project,
        location=found.location,
        names=names,
        conventions=conventions,
        dropped=dict(Counter(name.split(".")[0] for name in [*inside, *outside])),
        notes=notes,
        pretraining=pretraining_of(file),
    ), state_dict


def _check_heads(choice, inside):
    """Refuse names behind the encoder's prefix that are neither a ResNet's nor a head's that the layout drops."""
    heads = choice.layout.heads or r"(?!)"
    if odd := [name for name in inside if not re.match(heads, name)]:
        raise ValueError(
            relative(odd)
            or f"{len(odd)} names in its encoder at {choice.found.location!r} that no plain ResNet has "
            f"({first_few(odd)}): it may compute something else, refused; if you know that it does not, save the "
            "ResNet's state dict alone"
        )


def _surroundings(file, choice, encoder):
    """What the network expects of its surroundings, by what the checkpoint says, the files beside it, and its layout.

    Returns:
        tuple: Conventions; the encoder as the checkpoint or a file beside it names it, or None; and notes.
    """
    layout, found, _ = choice
    if layout.name == "prefix":  # named by the user, who knows the file better than its metadata
        claimed, pixels, own_code = None, None, False
    else:
        own_code = layout.name in ("loco-det", "detectron2") and bool(found.location)
        claimed, pixels = metadata_of(file, timm=layout.name in ("timm", "torchvision"), own_code=own_code)
    if layout.conventions is None:
        config = detectron2_runs.run_config(file)
        name = config["MODEL"].get("ENCODER")
        if name and isinstance(name, str):
            claimed = parse_name(name, own_code)
        return detectron2_runs.conventions_of(config), claimed, []
    if found.naming == "huggingface":
        conventions, notes = huggingface.conventions_beside(file, encoder)
        return conventions, claimed, notes
    if layout.name not in ("prefix", "loco-det"):
        pixels = openmmlab_pixels(file.content, found.written or found.location) or pixels
    if pixels:
        return layout.conventions._replace(mean=pixels[0], std=pixels[1]), claimed, []
    return layout.conventions, claimed, []

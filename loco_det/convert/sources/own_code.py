"""A pretraining checkpoint whose encoder is no shape that can be read from its weights, but a name that builds it.

A user's own code is run if the user asks for it by its name. A network of timm's is built.
"""

import contextlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from pretrain.encoders import Encoder, EncoderSpec, NamedEncoder, build_encoder, is_own_code, parse_encoder

from .architecture import COUNTER
from .checkpoint_file import CheckpointFile
from .conventions import Conventions
from .detectron2_runs import conventions_of, run_config
from .metadata import metadata_of, pretraining_of
from .search import state_dicts
from .source_type import Source


class OwnCode(NamedTuple):
    """A checkpoint whose encoder is a user's own code, or of ours one of timm's networks.

    Attributes:
        name: of the code, package.module.function; or timm:NAME.
        layout: of the checkpoint, a name of ``layouts.LAYOUTS``, and its project in words.
        weights: the dictionary's names, without wrappers -> values.
        path: keys of dictionaries that lead there.
        prefix: of the encoder's names.
        conventions: what it expects of its surroundings.
    """

    name: str
    layout: tuple[str, str]
    weights: dict
    path: tuple[str, ...]
    prefix: str
    conventions: Conventions


def find_own_code(
    file: CheckpointFile, source: str = "auto", ema: bool = False, prefix: str | None = None
) -> OwnCode | None:
    """What a checkpoint is, ours or of a Detectron2 run, if its encoder is built by name and that encoder is meant.

    Args:
        file: the checkpoint.
        source, ema, prefix: what the user asks for, as for :func:`loco_det.convert.load_source`.

    Raises:
        ValueError: if the config of the Detectron2 run has no usable mean and std.
    """
    if prefix is not None or ema:
        return None
    if file.is_ours:
        name = file.get("encoder")
        if source not in ("auto", "loco-det") or not (is_own_code(name) or is_timms(name)):
            return None
        conventions = Conventions("RGB", *(metadata_of(file).pixels or ()))
        return OwnCode(name, ("loco-det", "ours"), weights_of_ours(file), ("model",), "encoder.", conventions)
    if source not in ("auto", "detectron2"):
        return None
    for path, weights, _ in state_dicts(file.content):
        if match := re.search(r"^(backbone\.(bottom_up\.)?)?encoder\.", "\n".join(weights), re.MULTILINE):
            config = _config_of_run(file)
            if not is_own_code(name := config.get("MODEL", {}).get("ENCODER")):
                return None
            layout = ("detectron2", "Detectron2, an encoder of ours")
            return OwnCode(name, layout, weights, path, match[0], conventions_of(config))
    return None


def is_timms(name: object) -> bool:
    """Whether a value names an encoder of timm's, as our pretraining does: timm:NAME."""
    encoder = parse_encoder(name) if isinstance(name, str) else None
    return isinstance(encoder, NamedEncoder) and encoder.timm_name is not None


def _config_of_run(file):
    """The config of a Detectron2 run, empty if there is none that can be read."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        return run_config(file)
    return {}


def own_encoder(file: CheckpointFile, own: OwnCode, expected: EncoderSpec | None) -> tuple[Source, Encoder]:
    """The encoder that a name builds with the weights of a checkpoint.

    Args:
        file: the checkpoint.
        own: of :func:`find_own_code`.
        expected: the encoder that the user asked for by name; None: none.

    Returns:
        What it is, and the network in float32.

    Raises:
        ValueError: if it is own code that the user has not asked for by that name, or another encoder than they asked
            for; it cannot be built, or the weights do not fit it.
    """
    spec, (layout, project), weights = parse_encoder(own.name), own.layout, own.weights
    if is_timms(own.name):
        if expected not in (None, spec):
            raise ValueError(f"this is a {spec}, not the {expected} that was asked for")
    elif expected != spec:
        raise ValueError(
            f"its encoder is {spec.name!r}, code of your own, which is run only if asked for by that name, not by "
            f"{expected.name if expected else 'auto'!r}: --arch {spec.name}, or MODEL.SOURCE.ENCODER; if it computes "
            "what a plain ResNet does, --prefix names its place"
        )
    encoder = build_encoder(spec)
    names = {name.removeprefix(own.prefix): name for name in weights if name.startswith(own.prefix)}
    parts = {name: weights[full] for name, full in names.items()}
    # FrozenBN of Detectron2 has no counters
    counters = {n: t for n, t in encoder.state_dict().items() if n.endswith(COUNTER) and n not in parts}
    filled(encoder, parts | counters, f"its weights are not those of what {spec.name!r} builds").float()
    source = Source(
        path=file.path,
        encoder=spec,
        layout=layout,
        project=project,
        location="/".join([*own.path, own.prefix]),
        names={},
        conventions=own.conventions,
        dropped={},
        notes=list(file.notes),
        pretraining=pretraining_of(file),
    )
    return source, encoder


def weights_of_ours(file: CheckpointFile) -> dict[str, torch.Tensor]:
    """Names, without wrappers, and tensors of the learner in one of our checkpoints."""
    return next((weights for _, weights, _ in state_dicts(file.get("model"))), {})


def filled(module: nn.Module, weights: Mapping[str, object], fault: str) -> nn.Module:
    """``module`` with exactly these weights.

    Raises:
        ValueError: beginning with ``fault`` if they are not the module's; or if one is not finite.
    """
    try:
        module.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{fault} ({' '.join(str(error).split())})") from None
    if broken := [name for name, value in module.state_dict().items() if not torch.isfinite(value).all()]:
        raise ValueError(f"NaN or infinite values in {len(broken)} tensors ({broken[0]})")
    return module

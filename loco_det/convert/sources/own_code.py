"""A pretraining checkpoint whose encoder is a user's own code: it is run if the user asks for it by its name."""

from collections.abc import Mapping

import torch
from torch import nn

from pretrain.encoders import Encoder, EncoderSpec, NamedEncoder, build_encoder, is_own_code, parse_encoder

from .checkpoint_file import CheckpointFile
from .conventions import Conventions
from .metadata import metadata_of, pretraining_of
from .search import state_dicts
from .source_type import Source


def is_of_own_code(file: CheckpointFile, source: str = "auto", ema: bool = False, prefix: str | None = None) -> bool:
    """Whether a checkpoint is one of ours with such an encoder, and that encoder is meant."""
    meant = prefix is None and source in ("auto", "loco-det") and not ema
    return meant and file.is_ours and is_own_code(file.get("encoder"))


def own_encoder(file: CheckpointFile, expected: EncoderSpec | None) -> tuple[Source, Encoder]:
    """The user's own encoder with the weights of our checkpoint.

    Args:
        file: the checkpoint.
        expected: the encoder that the user asked for by name; None: none.

    Returns:
        What it is, and the network in float32.

    Raises:
        ValueError: if the user has not asked for it by that name, it cannot be built, or the weights do not fit it.
    """
    spec = parse_encoder(file.get("encoder"))
    if expected != spec or not isinstance(spec, NamedEncoder):
        raise ValueError(
            f"its encoder is {spec.name!r}, code of your own, which is run only if asked for by that name, not by "
            f"{expected.name if expected else 'auto'!r}: --arch {spec.name}, or MODEL.SOURCE.ENCODER; if it computes "
            "what a plain ResNet does, --prefix names its place"
        )
    encoder, weights = build_encoder(spec), weights_of_ours(file)
    weights = {n.removeprefix("encoder."): t for n, t in weights.items() if n.startswith("encoder.")}
    filled(encoder, weights, f"its weights are not those of what {spec.name!r} builds").float()
    conventions = Conventions("RGB", *(metadata_of(file).pixels or ()))
    source = Source(
        path=file.path,
        encoder=spec,
        layout="loco-det",
        project="ours",
        location="model/encoder.",
        names={},
        conventions=conventions,
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

"""Encoders by name, and from a list of stages."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from .presnet import presnet50
from .resnet import RESNETS, ResNetShape, resnet
from .shufflenet import shufflenetv2_50
from .spec import EncoderSpec, parse_encoder
from .stages import STAGE_NAMES, Encoder

BUILDERS: dict[str, Callable[[], tuple[Any, ...]]] = {"presnet50": presnet50, "shufflenetv2_50": shufflenetv2_50}
ENCODERS = (*RESNETS, *BUILDERS)


class StageEncoder(Encoder):
    """An encoder given as its stages, whose names are also those in the state dict (``res2.0...``)."""

    def __init__(
        self,
        stages: Mapping[str, nn.Sequential],
        channels: Sequence[int],
        strides: Sequence[float],
        groups: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            stages: dict from the name of a stage to its ``nn.Sequential`` of blocks, from the image upwards.
            channels: output channels of each stage.
            strides: output stride of each stage, in pixels of the image.
            groups: of the convs in each stage's bottleneck blocks; None: 1.

        Raises:
            ValueError: if the parts do not fit together.
        """
        super().__init__()
        self.groups = tuple(groups or [1] * len(channels))
        self.stage_names, self.channels, self.strides = tuple(stages), tuple(channels), tuple(strides)
        for name, stage in stages.items():
            if not isinstance(stage, nn.Module) or hasattr(self, name) or not name.isidentifier():
                raise ValueError(f"stage {name!r} cannot be used: expected a name such as 'res2' and an nn.Sequential")
            self.add_module(name, stage)
        check_encoder(self)
        if not len(self.strides) == len(self.groups) == len(self.stage_names):
            counts = f"{len(self.strides)} strides and {len(self.groups)} groups"
            raise ValueError(f"{len(self.stage_names)} stages, but {counts}")

    @property
    def stages(self) -> list[nn.Sequential]:
        return [getattr(self, name) for name in self.stage_names]


class ResNetEncoder(Encoder):
    """A torchvision ResNet without its classifier, seen as the four stages of LoCo (Sec. 4.1).

    The parameters keep torchvision's names (``conv1.weight``, ``layer1.0.conv1.weight``, ...), so that its state
    dict is what every other ResNet tool reads.
    """

    stage_names = STAGE_NAMES
    strides = (4, 8, 16, 32)

    def __init__(self, shape: ResNetShape) -> None:
        """
        Args:
            shape: depth and widths; of a name: :func:`resnet_shape`.
        """
        super().__init__()
        for child, module in resnet(shape).items():
            self.add_module(child, module)
        self.channels = tuple(shape.out * 2**k for k in range(4))
        _initialise(self)

    @property
    def stages(self) -> list[nn.Sequential]:
        """Views of the children, made anew: they are right also after a child was replaced (SyncBatchNorm)."""
        children = dict(self.named_children())
        stem = nn.Sequential(*(children[name] for name in ("conv1", "bn1", "relu", "maxpool")))
        layers = [cast(nn.Sequential, children[f"layer{k}"]) for k in (1, 2, 3, 4)]
        return [nn.Sequential(stem, *layers[0]), *layers[1:]]


def _initialise(encoder):
    """As torchvision's ResNets: He et al. 2015, by the fan-out; norms keep 1 and 0."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build_encoder(name: str | EncoderSpec) -> Encoder:
    """Build a randomly initialised encoder: as torchvision's ResNets, ``kaiming_normal_(mode="fan_out")``.

    Args:
        name: one of ``ENCODERS``, another ResNet (:func:`resnet_shape`), ``timm:`` and the name of a network of timm's,
            which initialises it (:mod:`.timm_encoder`), or ``package.module.function`` of your own, called without
            arguments, which returns an encoder (:class:`Encoder`) and initialises it; or the same parsed
            (:func:`parse_encoder`).

    Returns:
        The encoder. Your own need not derive from :class:`Encoder`, but has its attributes.

    Raises:
        ValueError: if the name is not known, or what it names cannot be imported, fails, or returns no encoder.
    """
    spec = parse_encoder(name) if isinstance(name, str) else name
    if isinstance(spec, ResNetShape):
        return ResNetEncoder(spec)
    if spec.name in BUILDERS:
        encoder = StageEncoder(*BUILDERS[spec.name]())
        _initialise(encoder)
        return encoder
    if spec.timm_name is not None:
        from .timm_encoder import TimmEncoder  # here, because importing timm takes seconds

        try:
            return TimmEncoder(spec.timm_name)
        except ValueError as error:
            raise ValueError(f"encoder {spec.name!r}: {error}") from None
    if spec.is_own_code:
        return _build_own(spec.name)
    raise ValueError(
        f"unknown encoder {spec.name!r}: choose one of {', '.join(ENCODERS)}, a variant such as resnet18x0.5 or "
        "wide_resnet50_2, timm:NAME, or package.module.function"
    )


def _build_own(name: str) -> Encoder:
    """Call a user's ``package.module.function``; raises ValueError as :func:`build_encoder`."""
    module, _, function = name.rpartition(".")
    try:
        builder = getattr(importlib.import_module(module), function)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(f"encoder {name!r} cannot be imported (is it on PYTHONPATH?): {_line(error)}") from error
    try:
        encoder = builder()
    except Exception as error:
        raise ValueError(f"encoder {name!r}: calling it failed: {_line(error)}") from error
    try:
        check_encoder(encoder)
    except ValueError as error:
        raise ValueError(f"encoder {name!r}: {error}") from None
    return encoder


def check_encoder(encoder: Any) -> None:
    """Refuse what has not the attributes of :class:`Encoder`; ``strides`` may be missing, pretraining needs none.

    Args:
        encoder: what a builder returned.

    Raises:
        ValueError: saying what is wrong.
    """
    lacking = [name for name in ("stages", "stage_names", "channels") if not hasattr(encoder, name)]
    if lacking or not isinstance(encoder, nn.Module):
        what = f"without {', '.join(lacking)}" if lacking else "that is no nn.Module"
        raise ValueError(f"expected an encoder, got a {type(encoder).__name__} {what}")
    encoder = cast(Encoder, encoder)
    counts = [len(encoder.stages), len(encoder.stage_names), len(encoder.channels)]
    if len(set(counts)) != 1 or not counts[0]:
        raise ValueError("{} stages, {} stage_names and {} channels: expected as many of each".format(*counts))
    if not all(isinstance(stage, nn.Sequential) and len(stage) for stage in encoder.stages):
        raise ValueError("every stage must be an nn.Sequential of one or more blocks")


def _line(error):
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

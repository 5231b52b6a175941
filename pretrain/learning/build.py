"""From the config to the learner: encoder, decoders, loss and the rule that connects them."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..encoders import Encoder, build_encoder
from .decoders import Decoder
from .learner import LocalLearner
from .losses import barlow_twins, info_nce, vicreg
from .small_maps import use_small_map_convs
from .units import blocks_of

Ties = list[tuple[nn.Parameter, nn.Parameter]]  # pairs of parameters, a decoder's and the encoder's
Module = TypeVar("Module", bound=nn.Module)
Loss = Callable[[Tensor, Tensor], Tensor]  # embeddings of two views, (B, D) each -> scalar


def build_learner(cfg: CfgNode, group: torch.distributed.ProcessGroup | None = None) -> LocalLearner:
    """The learner of a config, on its device in channels_last; with several processes on GPUs BN is synchronised.

    Args:
        cfg: the config.
        group: the processes that divide the batch; None: all.

    Raises:
        ValueError: if the encoder, the loss, a unit or another name is not known.
    """
    learner = assemble_learner(cfg, group)
    place_learner(learner, cfg)
    return learner


def assemble_learner(cfg: CfgNode, group: torch.distributed.ProcessGroup | None = None) -> LocalLearner:
    """As :func:`build_learner`, but still on the CPU, where the initial weights are drawn."""
    encoder = _initialised(build_encoder(cfg.MODEL.ENCODER), cfg)
    decoders: dict[str, nn.Module] = {}
    ties: Ties = []
    for unit in cfg.MODEL.UNITS:
        stage = unit[-1].partition("[")[0] if unit else ""
        if stage not in encoder.stage_names:
            raise ValueError(f"MODEL.UNITS: {unit} does not end with one of {', '.join(encoder.stage_names)}")
        decoder, tied = _build_decoder(cfg, encoder, list(encoder.stage_names).index(stage), unit[-1])
        decoders[unit[-1]] = _for_device(decoder, cfg, group)
        ties += tied
    return LocalLearner(
        _for_device(encoder, cfg, group),
        cfg.MODEL.UNITS,
        decoders,
        build_loss(cfg.LOSS, group),
        shared_gradient=cfg.MODEL.SHARED_GRADIENT,
        noise=cfg.MODEL.NOISE,
        recompute=cfg.MODEL.RECOMPUTE,
        ties=ties,
        tie_weight=cfg.MODEL.DECODER.TIE,
        split=cfg.MODEL.STAGE_PARALLEL.SPLIT,
    )


def place_learner(learner: LocalLearner, cfg: CfgNode) -> None:
    """Move a learner to MODEL.DEVICE in channels_last, and compile it if the config says so.

    Parameters and buffers without memory ("meta"), which other devices train, stay so.
    """

    def placed(tensor: Tensor) -> Tensor:
        order = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        return tensor if tensor.is_meta else tensor.to(cfg.MODEL.DEVICE, memory_format=order)

    learner._apply(placed)  # as Module.to, which would refuse "meta"
    if cfg.MODEL.COMPILE:
        learner.compile()


def _initialised(encoder: Module, cfg: CfgNode) -> Module:
    """The encoder, with the last BN of each residual block at 0 if the config says so (as SimCLR's code does)."""
    for block in encoder.modules() if cfg.MODEL.ZERO_INIT_RESIDUAL else ():
        if isinstance(block, BasicBlock | Bottleneck):
            nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)
    return encoder


def _for_device(module: Any, cfg: CfgNode, group: torch.distributed.ProcessGroup | None) -> Any:
    """The module with layers replaced by those that suit the device. The parameters stay the same objects."""
    if cfg.MODEL.DEVICE == "cpu":
        return module if cfg.MODEL.COMPILE else use_small_map_convs(module)
    # torch has no SyncBatchNorm for the CPU
    processes = comm.get_world_size() if group is None else group.size()
    return nn.SyncBatchNorm.convert_sync_batchnorm(module, group) if processes > 1 else module


def _build_decoder(cfg: CfgNode, encoder: Encoder, stage: int, top: str) -> tuple[Decoder, Ties]:
    """The decoder of one unit.

    Args:
        cfg: the config.
        encoder: the encoder below.
        stage: index of the stage that the unit ends in.
        top: the unit's last part, that stage or a slice of it.

    Returns:
        The decoder, and its ties to the encoder.
    """
    keys = cfg.MODEL.DECODER
    last = len(encoder.stages) - 1 if keys.STAGES < 0 else min(stage + keys.STAGES, len(encoder.stages) - 1)
    copies: Sequence[nn.Sequential] = []
    if last > stage:
        copies = _initialised(build_encoder(cfg.MODEL.ENCODER), cfg).stages[stage + 1 : last + 1]
    width = encoder.channels[last]
    if top != encoder.stage_names[stage] and last == stage:
        width = _width(encoder, top)
    decoder = Decoder(
        width,
        stages=copies,
        prefix_tokens=getattr(encoder, "prefix_tokens", None),
        conv_blocks=keys.CONV_BLOCKS,
        downsample=keys.DOWNSAMPLE,
        bottleneck=encoder.channels[-1] > 512,
        groups=getattr(encoder, "groups", [1] * len(encoder.stages))[last],
        expansion=keys.EXPANSION,
        pool_features=keys.POOL_FEATURES,
        mlp_layers=keys.MLP_LAYERS,
        hidden_dim=keys.HIDDEN_DIM,
        out_dim=keys.OUT_DIM,
        out_bn=keys.OUT_BN,
    )
    return decoder, _tie(copies, encoder.stages[stage + 1 : last + 1]) if keys.TIE else []


def _tie(copies: Sequence[nn.Sequential], originals: Sequence[nn.Sequential]) -> Ties:
    """Let copies of stages begin with the parameters of the originals, and pair them."""
    ties: Ties = []
    for tied, original in zip(copies, originals, strict=True):
        tied.load_state_dict(original.state_dict())
        ties += zip(tied.parameters(), original.parameters(), strict=True)
    return ties


@torch.no_grad()
def _width(encoder: Encoder, top: str) -> int:
    """Channels of the last block of a slice of a stage such as "res3[:1]", which need not be those of the stage."""
    h = torch.zeros(1, 3, 64, 64)
    blocks = [block for stage in encoder.stages for block in stage]
    for block in blocks[: blocks_of(top, encoder)[-1] + 1]:
        h = copy.deepcopy(block).eval()(h)  # the encoder's BN does not see the zeros
    return h.shape[1] if getattr(encoder, "prefix_tokens", None) is None else h.shape[2]


def build_loss(cfg: CfgNode, group: torch.distributed.ProcessGroup | None = None) -> Loss:
    """The loss of a LOSS node.

    Args:
        cfg: the node.
        group: the processes that divide the batch; None: all.

    Raises:
        ValueError: if its name is not known.
    """
    losses: dict[str, Loss] = {
        "info_nce": functools.partial(info_nce, temperature=cfg.TEMPERATURE, group=group),
        "barlow_twins": functools.partial(barlow_twins, lambd=cfg.LAMBDA, group=group),
        "vicreg": functools.partial(vicreg, weights=cfg.VICREG, group=group),
    }
    if cfg.NAME not in losses:
        raise ValueError(f"unknown LOSS.NAME {cfg.NAME!r}: choose one of {', '.join(losses)}")
    loss = losses[cfg.NAME]
    return loss if cfg.SCALE == 1 else functools.partial(_scaled, loss, cfg.SCALE)


def _scaled(loss: Loss, scale: float, z1: Tensor, z2: Tensor) -> Tensor:
    return scale * loss(z1, z2)

"""From the config to the learner: encoder, decoders, loss and the rule that connects them."""

import functools

import torch
from detectron2.utils import comm
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..encoders import build_encoder
from .decoders import Decoder
from .learner import LocalLearner
from .losses import barlow_twins, info_nce
from .small_maps import use_small_map_convs
from .units import blocks_of


def build_learner(cfg):
    """The learner of a config, on its device in channels_last; with several processes on GPUs BN is synchronised.

    Raises:
        ValueError: if the encoder, the loss, a unit or another name is not known.
    """
    encoder = _initialised(build_encoder(cfg.MODEL.ENCODER), cfg)
    decoders, ties = {}, []
    for unit in cfg.MODEL.UNITS:
        top = unit[-1].partition("[")[0] if unit else ""
        if top not in encoder.stage_names:
            raise ValueError(f"MODEL.UNITS: {unit} does not end with one of {', '.join(encoder.stage_names)}")
        decoder, tied = _build_decoder(cfg, encoder, list(encoder.stage_names).index(top), unit[-1])
        decoders[unit[-1]] = decoder
        ties += tied
    if comm.get_world_size() > 1 and cfg.MODEL.DEVICE != "cpu":  # torch has no SyncBatchNorm for the CPU
        encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
        decoders = {name: nn.SyncBatchNorm.convert_sync_batchnorm(decoder) for name, decoder in decoders.items()}
    learner = LocalLearner(
        encoder,
        cfg.MODEL.UNITS,
        decoders,
        build_loss(cfg.LOSS),
        shared_gradient=cfg.MODEL.SHARED_GRADIENT,
        noise=cfg.MODEL.NOISE,
        recompute=cfg.MODEL.RECOMPUTE,
        ties=ties,
        tie_weight=cfg.MODEL.DECODER.TIE,
    ).to(cfg.MODEL.DEVICE, memory_format=torch.channels_last)
    if cfg.MODEL.COMPILE:
        learner.compile()
    elif cfg.MODEL.DEVICE == "cpu":
        use_small_map_convs(learner)
    return learner


def _initialised(encoder, cfg):
    """The encoder, with the last BN of each residual block at 0 if the config says so (as SimCLR's code does)."""
    for block in encoder.modules() if cfg.MODEL.ZERO_INIT_RESIDUAL else ():
        if isinstance(block, BasicBlock | Bottleneck):
            nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)
    return encoder


def _build_decoder(cfg, encoder, stage, top):
    """The decoder on ``top``, of ``stage`` (its index), and the pairs of its parameters tied to the encoder's."""
    keys = cfg.MODEL.DECODER
    last = len(encoder.stages) - 1 if keys.STAGES < 0 else min(stage + keys.STAGES, len(encoder.stages) - 1)
    copies = []
    if last > stage:
        copies = _initialised(build_encoder(cfg.MODEL.ENCODER), cfg).stages[stage + 1 : last + 1]
    width = encoder.channels[last]
    if top != encoder.stage_names[stage] and last == stage:
        width = _width(encoder, top)
    decoder = Decoder(
        width,
        stages=copies,
        conv_blocks=keys.CONV_BLOCKS,
        downsample=keys.DOWNSAMPLE,
        bottleneck=encoder.channels[-1] > 512,
        groups=getattr(encoder, "groups", [1] * len(encoder.stages))[last],
        expansion=keys.EXPANSION,
        mlp_layers=keys.MLP_LAYERS,
        hidden_dim=keys.HIDDEN_DIM,
        out_dim=keys.OUT_DIM,
        out_bn=keys.OUT_BN,
    )
    ties = []
    if keys.TIE:
        for copy, original in zip(copies, encoder.stages[stage + 1 : last + 1], strict=True):
            copy.load_state_dict(original.state_dict())  # two copies begin as one
            ties += zip(copy.parameters(), original.parameters(), strict=True)
    return decoder, ties


@torch.no_grad()
def _width(encoder, top):
    """Channels of the last block of a slice of a stage such as "res3[:1]", which need not be those of the stage."""
    h, was_training = torch.zeros(1, 3, 64, 64), encoder.training
    blocks = [block for stage in encoder.eval().stages for block in stage]
    for block in blocks[: blocks_of(top, encoder)[-1] + 1]:
        h = block(h)
    encoder.train(was_training)
    return h.shape[1]


def build_loss(cfg):
    """The loss of a LOSS node: a function of two (B, D) matrices of embeddings."""
    losses = {
        "info_nce": functools.partial(info_nce, temperature=cfg.TEMPERATURE),
        "barlow_twins": functools.partial(barlow_twins, lambd=cfg.LAMBDA),
    }
    if cfg.NAME not in losses:
        raise ValueError(f"unknown LOSS.NAME {cfg.NAME!r}: choose one of {', '.join(losses)}")
    loss = losses[cfg.NAME]
    return loss if cfg.SCALE == 1 else lambda z1, z2: cfg.SCALE * loss(z1, z2)

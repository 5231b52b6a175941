"""How both readouts begin, linear probe and kNN: the config, the folder's logs, the encoder of a checkpoint."""

import argparse
import logging

import torch
from fvcore.common.config import CfgNode

from pretrain.engine.logs import start_logs
from pretrain.engine.precision import with_precision
from pretrain.files.remote import shown
from pretrain.processes.cpu import prepare_cpu
from pretrain.readout.config import check, get_cfg
from pretrain.readout.features import PooledEncoder
from pretrain.readout.results import refuse_others

from ...convert import Readable, add_encoder_config
from .config import merge_config


def readout_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a readout, with the keys that find an encoder in a checkpoint.

    Raises:
        ValueError: if a key or a value is refused.
        OSError: if the config file cannot be read.
    """
    cfg = get_cfg()
    add_encoder_config(cfg)
    merge_config(cfg, args)
    check(cfg)
    cfg.freeze()
    return cfg


def begin_readout(cfg: CfgNode, readable: Readable, kind: str, *loggers: str, resume: bool = False) -> CfgNode:
    """Begin the logs of a readout, with where its encoder comes from.

    Args:
        cfg: of :func:`readout_config`.
        readable: of :func:`loco_det.convert.load_encoder_of`.
        kind: of the readout, as in results.json: "linear" or "knn".
        loggers: names of those whose lines are shown.
        resume: whether an earlier run in the folder goes on.

    Returns:
        The config with a precision that suits the machine.

    Raises:
        ValueError: if the folder holds a run of another kind.
    """
    refuse_others(cfg.OUTPUT_DIR, kind)
    start_logs(cfg.OUTPUT_DIR, *loggers)
    for note in (readable.summary(), *readable.source.notes):
        logging.getLogger("pretrain").info(f"{shown(cfg.MODEL.WEIGHTS)}: {note}")
    prepare_cpu(cfg.MODEL.DEVICE, cfg.MODEL.KEEP_FREED_MEMORY)
    return with_precision(cfg, resume)


def pooled_encoder(cfg: CfgNode, readable: Readable) -> PooledEncoder:
    """The encoder on MODEL.DEVICE, from images as they are to the pooled features of MODEL.STAGES, or of all stages.

    Raises:
        ValueError: if it lacks one of these stages.
    """
    (mean, std), stages = readable.conventions[1:3], cfg.MODEL.STAGES or readable.encoder.feature_names
    encoder = PooledEncoder(readable.encoder, mean, std, stages, cfg.SOLVER.AMP.ENABLED)
    encoder.to(cfg.MODEL.DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in pretraining
    return encoder

"""Which device has which stages: as the config says, as the run began, or by measured times."""

import logging
import os

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from ...encoders import Encoder, build_encoder
from ...files.yaml_files import read_yaml
from ...learning.build import build_learner
from ...learning.stage_parallel.times import choose_split, measure, split_at
from ...learning.units import read_split
from ...processes.stage_mesh import StageMesh
from .build import refuse_learner
from .memory import give_back_all

logger = logging.getLogger(__name__)
MOST_IMAGES = 16  # of a measured step


def refuse_split(cfg: CfgNode) -> None:
    """Refuse a split that is not one of the config's encoder.

    Raises:
        ValueError: saying why; also if the encoder has fewer blocks than there are devices.
    """
    devices, split = cfg.MODEL.STAGE_PARALLEL.DEVICES, cfg.MODEL.STAGE_PARALLEL.SPLIT
    encoder = _encoder(cfg)
    blocks = sum(len(stage) for stage in encoder.stages)
    if devices > blocks:
        raise ValueError(
            f"MODEL.STAGE_PARALLEL.DEVICES is {devices}, but {cfg.MODEL.ENCODER} has {blocks} blocks: each device "
            "needs one"
        )
    try:
        read_split(split, encoder)
    except ValueError as error:
        raise ValueError(f"MODEL.STAGE_PARALLEL.SPLIT: {error}") from None


def with_split(cfg: CfgNode, resume: bool, mesh: StageMesh) -> CfgNode:
    """Choose MODEL.STAGE_PARALLEL.SPLIT if it is empty.

    Args:
        cfg: the config; not changed.
        resume: whether the run in OUTPUT_DIR is resumed: then its split is taken, if it has as many devices.
        mesh: the processes, which measure together.

    Returns:
        ``cfg`` or a copy with a split, the same in all processes.
    """
    if cfg.MODEL.STAGE_PARALLEL.SPLIT:
        return cfg
    split = comm.all_gather(_split_of_run(cfg) if resume else None)[0] or _measured(cfg, mesh)
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg.MODEL.STAGE_PARALLEL.SPLIT = split
    if frozen:
        cfg.freeze()
    return cfg


def _encoder(cfg: CfgNode) -> Encoder:
    """The encoder, for its structure; no random numbers are drawn."""
    with torch.random.fork_rng():
        return build_encoder(cfg.MODEL.ENCODER)


def _split_of_run(cfg: CfgNode) -> list[list[str]] | None:
    """The split in a run's config.yaml, if it is one for as many devices."""
    try:
        split = read_yaml(os.path.join(cfg.OUTPUT_DIR, "config.yaml"))["MODEL"]["STAGE_PARALLEL"]["SPLIT"]
        read_split(split, _encoder(cfg))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # the checkpoint is read anyway
    return split if len(split) == cfg.MODEL.STAGE_PARALLEL.DEVICES else None


def _measured(cfg: CfgNode, mesh: StageMesh) -> list[list[str]]:
    """Measure the passes of each block in all processes at once, and choose by the means.

    Each process has the whole network for that, with a few images, and gives its memory back.
    """
    encoder, each, solver = _encoder(cfg), cfg.clone(), cfg.SOLVER
    each.defrost()
    blocks = sum(len(stage) for stage in encoder.stages)
    each.MODEL.STAGE_PARALLEL.SPLIT, each.MODEL.COMPILE = split_at(range(1, blocks), encoder), False
    each.MODEL.RECOMPUTE = []
    with torch.random.fork_rng():
        learner = build_learner(each, mesh.data)
        refuse_learner(learner, late=False)  # before minutes are spent; whether late is possible depends on the split
        images = min(MOST_IMAGES, solver.IMS_PER_BATCH // mesh.copies)
        views = torch.randn(2 * images, 3, cfg.INPUT.CROP_SIZE, cfg.INPUT.CROP_SIZE, device=cfg.MODEL.DEVICE)
        views = views.contiguous(memory_format=torch.channels_last)
        with torch.autocast(views.device.type, torch.bfloat16, enabled=solver.AMP.ENABLED):
            found = comm.all_gather(measure(learner, views))
    del learner, views
    give_back_all()
    times = {key: sum(of[key] for of in found) / len(found) for key in found[0]}
    parallel, units = cfg.MODEL.STAGE_PARALLEL, cfg.MODEL.UNITS
    chosen = choose_split(encoder, units, times, parallel.DEVICES, parallel.LATE, cfg.MODEL.SHARED_GRADIENT)
    split, step, one = comm.all_gather(chosen)[0]
    logger.info(
        f"MODEL.STAGE_PARALLEL.SPLIT by measured times: {split}; {one / step:.2f} times the speed of one device, if "
        "messages took no time"
    )
    return split

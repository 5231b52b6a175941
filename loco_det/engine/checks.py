"""Checks of a config before data and network are built."""

from detectron2.config import CfgNode

from pretrain.engine.estimate import warning_of_size
from pretrain.files.checkpoints import checkpoint_names

from ..data.mapper import large_scale_jitter
from ..evaluation.build import COCO_EVALUATORS, evaluator_type
from ..modeling.timm.build import BUILDERS, check_levels
from .checkpoint import check_file
from .optimizer import check_optimizer
from .weights import check_network

EVERYTHING = 5  # FREEZE_AT of a ResNet that is frozen as a whole

# Measured by benchmarks/detection_step.py with a frozen ResNet-50 on 2 images of 800 x 1216 (2 cores of an AMD EPYC)
STEP_SECONDS = 5.0  # for a million pixels


def size_warning(cfg: CfgNode) -> str | None:
    """A warning, one line, of training on a CPU whose steps are sized for GPUs; None if they are not.

    Args:
        cfg: the config, not yet scaled to the number of processes (SOLVER.REFERENCE_WORLD_SIZE).
    """
    images = cfg.SOLVER.IMS_PER_BATCH // (cfg.SOLVER.REFERENCE_WORLD_SIZE or 1)
    height = cfg.INPUT.LSJ.SIZE or max(cfg.INPUT.MIN_SIZE_TRAIN)
    width = cfg.INPUT.LSJ.SIZE or min(height * 4 // 3, cfg.INPUT.MAX_SIZE_TRAIN)
    return warning_of_size(
        cfg.MODEL.DEVICE, images, height, width, STEP_SECONDS, "configs/detection/cpu_frozen/resnet18_loco.yaml"
    )


def freeze_warning(cfg: CfgNode) -> str | None:
    """A warning, one line, of a ViT of which some blocks learn by a FREEZE_AT that freezes all of a ResNet; or None.

    Args:
        cfg: the config, after :func:`check_run`.
    """
    if cfg.MODEL.BACKBONE.NAME not in BUILDERS or (frozen := cfg.MODEL.BACKBONE.FREEZE_AT) < EVERYTHING:
        return None
    from ..modeling.timm.network import is_plain, levels_of  # here: timm takes a second

    levels = levels_of(cfg.MODEL.TIMM.NAME)
    blocks = levels[-1].index + 1
    if not is_plain(levels) or frozen > blocks:
        return None
    return (
        f"MODEL.BACKBONE.FREEZE_AT {frozen} freezes the first {frozen - 1} of {cfg.MODEL.TIMM.NAME}'s {blocks} blocks, "
        "the others learn: 99 freezes all"
    )


def check_run(cfg: CfgNode, resume: bool = False, eval_only: bool = False) -> None:
    """Refuse a config that would fail later.

    Args:
        cfg: the config, with the data sets registered.
        resume: whether the run is resumed.
        eval_only: whether the detector is evaluated only.

    Raises:
        FileNotFoundError: if there is nothing to resume, or the weights are missing.
        ValueError: if the network of timm does not fit, the weights are another network's, the optimiser or the
            jitter is none, no weights or no data are named, a data set or TEST.COCO_EVALUATOR has no evaluator,
            SOLVER.AMP.ENABLED is True for training on neither a GPU nor a CPU, SOLVER.STEPS has the last iteration, or
            the batch is no multiple of SOLVER.REFERENCE_WORLD_SIZE.
    """
    _check_timm(cfg)
    check_optimizer(cfg)
    if cfg.INPUT.LSJ.SIZE:
        large_scale_jitter(cfg)
    if resume:
        if not checkpoint_names(cfg.OUTPUT_DIR):
            raise FileNotFoundError(f"{cfg.OUTPUT_DIR}: nothing to resume; leave out --resume to start anew")
    elif not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a converted checkpoint, or random for a random initialisation")
    elif cfg.MODEL.WEIGHTS != "random":
        check_file(cfg.MODEL.WEIGHTS)
        check_network(cfg)
    if cfg.SOLVER.AMP.ENABLED and not eval_only and cfg.MODEL.DEVICE != "cpu" and "cuda" not in cfg.MODEL.DEVICE:
        raise ValueError(
            f"SOLVER.AMP.ENABLED True is float16 on a GPU, bfloat16 on a CPU: on MODEL.DEVICE {cfg.MODEL.DEVICE} set "
            "it to False"
        )
    if not (cfg.DATASETS.TEST if eval_only else cfg.DATASETS.TRAIN):
        raise ValueError(
            f"no data to {'evaluate' if eval_only else 'train'} on: name a --config-file, "
            f"DATASETS.{'TEST' if eval_only else 'TRAIN'} or DATASETS.CUSTOM"
        )
    if not eval_only and cfg.SOLVER.MAX_ITER in cfg.SOLVER.STEPS:
        raise ValueError(
            f"SOLVER.STEPS {tuple(cfg.SOLVER.STEPS)} has SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: no iteration is left "
            "after it, leave it out"
        )
    for name in cfg.DATASETS.TEST:
        evaluator_type(name)
    if cfg.TEST.COCO_EVALUATOR not in COCO_EVALUATORS:
        raise ValueError(f"TEST.COCO_EVALUATOR {cfg.TEST.COCO_EVALUATOR!r}: use one of {', '.join(COCO_EVALUATORS)}")
    world = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if world and cfg.SOLVER.IMS_PER_BATCH % world:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of SOLVER.REFERENCE_WORLD_SIZE {world}: "
            "set that to 0 to take batch, learning rate and schedule as they stand"
        )


def _check_timm(cfg):
    """ValueError if MODEL.TIMM does not fit the backbone."""
    timm, used = cfg.MODEL.TIMM, cfg.MODEL.BACKBONE.NAME in BUILDERS
    if not used and timm.NAME:
        raise ValueError(
            f"MODEL.TIMM.NAME {timm.NAME} is not what MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} builds: set that "
            f"to {BUILDERS[1]}, or leave MODEL.TIMM.NAME empty"
        )
    if not used:
        return
    check_levels(cfg)
    if not 0 <= timm.DROP_PATH < 1:
        raise ValueError(f"MODEL.TIMM.DROP_PATH {timm.DROP_PATH}: expected a rate from 0, below 1")
    if timm.SQUARE_PAD % 32 or timm.SQUARE_PAD < 0:
        raise ValueError(f"MODEL.TIMM.SQUARE_PAD {timm.SQUARE_PAD}: expected a multiple of 32, or 0")
    largest = max(cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.LSJ.SIZE or cfg.INPUT.MAX_SIZE_TRAIN)
    if 0 < timm.SQUARE_PAD < largest:
        raise ValueError(f"MODEL.TIMM.SQUARE_PAD {timm.SQUARE_PAD}: images have sides of up to {largest} pixels")

"""Whether a detector is trained in bfloat16 on a CPU: what SOLVER.AMP.AUTO means there."""

import logging

from detectron2.config import CfgNode

from pretrain.engine.precision import bfloat16_support

logger = logging.getLogger(__name__)


def with_precision(cfg: CfgNode) -> CfgNode:
    """Replace SOLVER.AMP.AUTO by SOLVER.AMP.ENABLED, and log why.

    Args:
        cfg: the frozen config of a training; not changed.

    Returns:
        ``cfg`` or a frozen copy with SOLVER.AMP.AUTO False. On another device than a CPU, and where it is True already,
        SOLVER.AMP.ENABLED stays what it is.
    """
    if not cfg.SOLVER.AMP.AUTO:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.AMP.AUTO = False
    if cfg.MODEL.DEVICE.partition(":")[0] == "cpu" and not cfg.SOLVER.AMP.ENABLED:
        fast, why = bfloat16_support("cpu")
        cfg.SOLVER.AMP.ENABLED = fast
        logger.info(f"SOLVER.AMP.AUTO: {'bfloat16' if fast else 'float32'}, because {why}")
    cfg.freeze()
    return cfg

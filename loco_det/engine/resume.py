"""A resumed or evaluated run keeps the config that it began with, except for keys that change no weight."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from pretrain.files.checkpoints import (
    checkpoint_names,
    differing_keys,
    newest_of_all,
    refuse_other_config,
    saved_config,
)
from pretrain.files.safe_load import read_own

# Keys that may change when a run is resumed, because no weight depends on them. The data are compared by content.
FREE = {
    "OUTPUT_DIR", "SEED", "MODEL.DEVICE", "MODEL.FAST_FROZEN", "MODEL.KEEP_FREED_MEMORY", "MODEL.LIGHT_HEAD.FEATURES",
    "MODEL.LIGHT_HEAD.TEST_IMAGES", "DATALOADER.NUM_WORKERS",
    "DATASETS", "WANDB", "PUBLISHED", "VIS_PERIOD", "CUDNN_BENCHMARK", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.AMP.AUTO",
    "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TEST",
    "TEST.EXPECTED_RESULTS", "TEST.EVAL_PERIOD", "TEST.KEYPOINT_OKS_SIGMAS", "TEST.DETECTIONS_PER_IMAGE", "TEST.AUG",
    "TEST.COCO_EVALUATOR", "TEST.NUM_PICTURES", "TEST.PICTURE_THRESHOLD",
}  # fmt: skip
# What runs of version 0.1 did without having a key for it
BEFORE = {
    "SOLVER.OPTIMIZER": "SGD", "SOLVER.LAYER_DECAY": 1.0, "INPUT.LSJ.SIZE": 0, "INPUT.LSJ.MIN_SCALE": 0.1,
    "INPUT.LSJ.MAX_SCALE": 2.0, "MODEL.TIMM.NAME": "", "MODEL.TIMM.DROP_PATH": 0.0, "MODEL.TIMM.FINAL_NORM": False,
    "MODEL.TIMM.SQUARE_PAD": 0,
}  # fmt: skip


def check_resumed(cfg: CfgNode) -> None:
    """Refuse to resume a run with other values of keys that its weights depend on.

    To be called before anything is written.

    Args:
        cfg: the config of the resumed run, batch and schedule scaled to the number of processes. A negative SEED
            (any), an empty MODEL.WEIGHTS, SOLVER.AMP.AUTO, and the pixels of a run that began before INPUT.EXACT_RESIZE
            are replaced by what the run has.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if no checkpoint can be read, or the run began with other values.
    """
    saved = _saved_trainer(cfg)
    if cfg.SEED < 0:
        cfg.SEED = saved["seed"]
    run = saved_config(saved) if "config" in saved else None
    _keep(cfg, run or {})
    cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or saved["weights"]
    if cfg.SEED != saved["seed"]:
        raise ValueError(f"SEED is {cfg.SEED}, but the run began with {saved['seed']}: resume with that")
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch != saved["batch"]:  # iterations and learning rates in the checkpoint belong to that batch
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, but the run began with {saved['batch']}: resume "
            "with as many GPUs, or with the run's config.yaml and SOLVER.REFERENCE_WORLD_SIZE 0"
        )
    if run is not None:  # version 0.1 did not store it
        refuse_other_config(cfg.OUTPUT_DIR, differing_keys(cfg, run, FREE))


def check_evaluated(cfg: CfgNode, resume: bool) -> CfgNode:
    """The config of an evaluation. In the folder of a run, keys that its weights depend on must have the run's values.

    Otherwise results and ``config.yaml`` would describe another training than the network's.

    Args:
        cfg: the config, not scaled to the number of processes.
        resume: whether the run's newest checkpoint is evaluated, instead of MODEL.WEIGHTS.

    Returns:
        ``cfg``, scaled to the number of processes that the run was trained in.

    Raises:
        FileNotFoundError, ValueError: as :func:`check_resumed`.
    """
    if not (resume or checkpoint_names(cfg.OUTPUT_DIR)):
        return cfg
    saved = _saved_trainer(cfg)
    if "config" not in saved:
        return cfg
    run = saved_config(saved)
    cfg = DefaultTrainer.auto_scale_workers(cfg, run["SOLVER.REFERENCE_WORLD_SIZE"] or cfg.SOLVER.REFERENCE_WORLD_SIZE)
    cfg.defrost()
    cfg.INPUT.MASK_FORMAT = run.get("INPUT.MASK_FORMAT", cfg.INPUT.MASK_FORMAT)  # set by the data that were trained on
    _keep(cfg, run)
    if resume:
        cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or saved["weights"]
    free = FREE | {"INPUT.EXACT_RESIZE"} | (set() if resume else {"MODEL.WEIGHTS"})
    refuse_other_config(cfg.OUTPUT_DIR, differing_keys(cfg, run, free))
    return cfg


def _keep(cfg: CfgNode, run: dict[str, Any]) -> None:
    """What a run began with and a config need not say: its precision, and what it did before there was a choice."""
    if cfg.SOLVER.AMP.AUTO:
        cfg.SOLVER.AMP.AUTO, cfg.SOLVER.AMP.ENABLED = False, run.get("SOLVER.AMP.ENABLED", False)
    if "INPUT.EXACT_RESIZE" not in run:
        run["INPUT.EXACT_RESIZE"] = cfg.INPUT.EXACT_RESIZE = True
    if run:
        run.update({key: value for key, value in BEFORE.items() if key not in run})


def _saved_trainer(cfg: CfgNode) -> dict[str, Any]:
    """The trainer's state in the newest intact checkpoint; it has at least "seed", "weights" and "batch"."""

    def check(content: dict[str, Any]) -> None:
        trainer = content["trainer"]
        if not (isinstance(trainer["seed"], int) and isinstance(trainer["weights"], str) and trainer["batch"] > 0):
            raise TypeError("its trainer's state is not ours")

    return read_own(newest_of_all(cfg.OUTPUT_DIR, check, warn=False))["trainer"]

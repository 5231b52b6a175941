"""Rank frozen encoders in minutes: train a light detection head on features that are computed once.

Its box AP is a figure to rank encoders by. It is not comparable with that of a Mask R-CNN (tools/train_net.py).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common.arguments import argument_parser
from .common.errors import quiet_trainer, stopped_by_sigterm

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

EXAMPLE = """examples:
  python tools/light_head.py --config-file configs/evaluate/light_small.yaml MODEL.WEIGHTS output/loco.pkl \\
      DATASETS.CUSTOM.TRAIN_JSON my/train.json DATASETS.CUSTOM.TRAIN_IMAGES my/images \\
      DATASETS.CUSTOM.TEST_JSON my/val.json DATASETS.CUSTOM.TEST_IMAGES my/images \\
      MODEL.LIGHT_HEAD.FEATURES output/features OUTPUT_DIR output/light
  DETECTRON2_DATASETS=/data python tools/light_head.py --config-file configs/evaluate/light_coco.yaml \\
      MODEL.WEIGHTS output/loco.pkl OUTPUT_DIR output/light_coco
The box AP ranks encoders; it is no Mask R-CNN's. Keys: MODEL.LIGHT_HEAD in loco_det/config.py."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = argument_parser(EXAMPLE).parse_args(argv)
    from .common.launch import launch

    launch(run, args)


def run(args: argparse.Namespace) -> None:
    """Train the head, or with --eval-only evaluate it.

    Raises:
        ValueError: if the config, the data, the weights or the folder is refused.
        OSError: if a file cannot be read or written.
    """
    from detectron2.config import get_cfg
    from detectron2.utils import comm

    from pretrain.processes.cpu import prepare_cpu

    from ..config import add_loco_config
    from ..data.datasets import prepare_datasets
    from ..data.drawn import draw_images, undrawn
    from ..engine.checks import check_run
    from ..engine.eval_only import evaluate
    from ..engine.light_trainer import LightTrainer
    from .common.config import merge_config
    from .common.run_folder import refuse_finished, run_folder
    from .train_net import config_to_run, set_up

    cfg = get_cfg()
    add_loco_config(cfg)
    merge_config(cfg, args)
    if comm.get_world_size() > 1:
        raise ValueError("the light head trains in one process: leave out --num-gpus")
    with run_folder(cfg.OUTPUT_DIR):
        if not (args.resume or args.eval_only):
            refuse_finished(cfg.OUTPUT_DIR)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = undrawn(cfg.DATASETS.TRAIN), undrawn(cfg.DATASETS.TEST)
        prepare_datasets(cfg, args.eval_only)
        if not args.eval_only:
            cfg.DATASETS.TRAIN = draw_images(cfg.DATASETS.TRAIN, cfg.MODEL.LIGHT_HEAD.TRAIN_IMAGES)
        cfg.DATASETS.TEST = draw_images(cfg.DATASETS.TEST, cfg.MODEL.LIGHT_HEAD.TEST_IMAGES)
        check_run(cfg, args.resume, args.eval_only)
        check_light(cfg)
        cfg = config_to_run(cfg, args)
        cfg = set_up(cfg, args)
        quiet_trainer()
        prepare_cpu(cfg.MODEL.DEVICE, cfg.MODEL.KEEP_FREED_MEMORY)
        if not args.eval_only:
            trainer = LightTrainer(cfg)
            with stopped_by_sigterm("features are kept that were computed until now; the same command goes on"):
                trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        with stopped_by_sigterm("there is no result; the same command starts anew"):
            evaluate(cfg, args.resume)
    else:
        trainer.train()


def check_light(cfg: CfgNode) -> None:
    """Refuse a config that is not of the light head.

    Raises:
        ValueError: naming the key and what it should be.
    """
    from ..engine.feature_store import mirrors
    from ..evaluation.build import evaluator_type
    from ..modeling.light_detector import NAME

    if cfg.MODEL.META_ARCHITECTURE != NAME:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: this needs {NAME}, as in "
            "configs/evaluate/light_small.yaml"
        )
    if cfg.MODEL.MASK_ON:
        raise ValueError("the light head has boxes, no masks: set MODEL.MASK_ON False")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN}: the light head has TrainingSampler")
    mirrors(cfg)
    for name in cfg.DATASETS.TEST:
        if evaluator_type(name) == "cityscapes_instance":
            raise ValueError(
                f"data set {name}: Cityscapes' evaluator needs masks, and the light head has boxes: name its "
                "annotations in COCO's format with DATASETS.CUSTOM"
            )

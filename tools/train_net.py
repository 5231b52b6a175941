#!/usr/bin/env python3
"""Train and evaluate Mask R-CNN on a pretrained backbone, in Detectron2's command-line habits."""

import os
import sys

# Before tools/, where pretrain.py would hide the package of the same name.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from common import (
    argument_parser,
    launch,
    merge_config,
    one_line_errors,
    quiet_trainer,
    refuse_finished,
    run_folder,
    stopped_by_sigterm,
)
from detectron2.config import get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from loco_det.config import add_loco_config
from loco_det.data.datasets import prepare_datasets
from loco_det.trainer import Trainer, check_run, evaluate, previous_seed

EXAMPLE = """examples:
  DETECTRON2_DATASETS=/data python tools/train_net.py --config-file configs/coco_loco_frozen.yaml \\
      MODEL.WEIGHTS output/loco.pkl OUTPUT_DIR output/coco_frozen
  python tools/train_net.py --config-file configs/coco_loco_finetune.yaml MODEL.WEIGHTS output/loco.pkl \\
      DATASETS.CUSTOM.TRAIN_JSON my/train.json DATASETS.CUSTOM.TRAIN_IMAGES my/images \\
      DATASETS.CUSTOM.TEST_JSON my/val.json DATASETS.CUSTOM.TEST_IMAGES my/images
Every key: Detectron2's config reference, and loco_det/config.py for those that we add."""


def main(args):
    cfg = get_cfg()
    add_loco_config(cfg)
    merge_config(cfg, args)
    if comm.get_world_size() > 1 and (cfg.MODEL.DEVICE == "cpu" or not torch.cuda.is_available()):
        raise ValueError("--num-gpus above 1 needs GPUs: Detectron2 trains on the CPU in one process only")
    prepare_datasets(cfg)
    check_run(cfg, args.resume, args.eval_only)
    if not (args.resume or args.eval_only):
        refuse_finished(cfg.OUTPUT_DIR)
    if cfg.SEED < 0:  # for --resume, which goes on with the same random numbers
        resumed = args.resume and not args.eval_only  # an evaluation draws nothing
        cfg.SEED = previous_seed(cfg.OUTPUT_DIR) if resumed else comm.shared_random_seed()
    cfg = Trainer.auto_scale_workers(cfg, comm.get_world_size())  # here, so that config.yaml says what is run
    cfg.freeze()
    with run_folder(cfg.OUTPUT_DIR):
        default_setup(cfg, args)
        for package in ("loco_det", "pretrain"):  # pretrain.engine is of both
            setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=package)
        quiet_trainer()
        torch.set_flush_denormal(True)  # denormal activations made single steps ten times slower on the CPU
        if not args.eval_only:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        with stopped_by_sigterm("there is no result; the same command starts anew"):
            evaluate(cfg, args.resume)
    else:
        trainer.train()


if __name__ == "__main__":
    arguments = argument_parser(EXAMPLE).parse_args()
    with one_line_errors():
        launch(main, arguments)

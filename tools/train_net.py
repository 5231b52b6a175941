#!/usr/bin/env python3
"""Train and evaluate Mask R-CNN on a pretrained backbone, in Detectron2's command-line habits."""

import logging
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
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

from loco_det.config import add_loco_config
from loco_det.data.datasets import prepare_datasets
from loco_det.engine.checks import check_run, size_warning
from loco_det.engine.eval_only import evaluate
from loco_det.engine.resume import check_evaluated, check_resumed
from loco_det.engine.trainer import Trainer
from pretrain.engine.logs import start_logs
from pretrain.files.checkpoints import write_config

EXAMPLE = """examples:
  DETECTRON2_DATASETS=/data python tools/train_net.py --config-file configs/coco_loco_frozen.yaml \\
      MODEL.WEIGHTS output/loco.pkl OUTPUT_DIR output/coco_frozen
  python tools/train_net.py --config-file configs/coco_loco_finetune.yaml MODEL.WEIGHTS output/loco.pkl \\
      DATASETS.CUSTOM.TRAIN_JSON my/train.json DATASETS.CUSTOM.TRAIN_IMAGES my/images \\
      DATASETS.CUSTOM.TEST_JSON my/val.json DATASETS.CUSTOM.TEST_IMAGES my/images
Every key: Detectron2's config reference, and loco_det/config.py for those that we add."""


def set_up(cfg, args):
    """As Detectron2's ``default_setup``, without the config's 700 lines in the log: they are in config.yaml."""
    start_logs(cfg.OUTPUT_DIR, "fvcore", "detectron2", "loco_det", "pretrain")
    logger = logging.getLogger("loco_det")
    logger.info(f"Process {comm.get_rank()} of {comm.get_world_size()}. Environment info:\n{collect_env_info()}")
    logger.info(f"Command line arguments: {args}")
    if comm.is_main_process():
        write_config(cfg)
    seed_all_rng(cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only


def settled(cfg, args):
    """The config as it is run, frozen: scaled to the number of processes, with a seed; what is in the folder counts."""
    if args.eval_only:
        cfg = check_evaluated(cfg, args.resume)
        cfg.SEED = max(cfg.SEED, 0)  # an evaluation draws nothing
    else:
        cfg = Trainer.auto_scale_workers(cfg, comm.get_world_size())  # here, so that config.yaml says what is run
        cfg.defrost()
        if args.resume:
            check_resumed(cfg)
        elif cfg.SEED < 0:  # for --resume, which goes on with the same random numbers
            cfg.SEED = comm.shared_random_seed()
    cfg.freeze()
    return cfg


def main(args):
    cfg = get_cfg()
    add_loco_config(cfg)
    merge_config(cfg, args)
    if comm.get_world_size() > 1 and (cfg.MODEL.DEVICE == "cpu" or not torch.cuda.is_available()):
        raise ValueError("--num-gpus above 1 needs GPUs: Detectron2 trains on the CPU in one process only")
    if not args.eval_only and (warning := size_warning(cfg)):
        print(f"WARNING: {warning}", flush=True)  # before data are read, and so before there is a log
    with run_folder(cfg.OUTPUT_DIR):
        if not (args.resume or args.eval_only):
            refuse_finished(cfg.OUTPUT_DIR)
        prepare_datasets(cfg)
        check_run(cfg, args.resume, args.eval_only)
        cfg = settled(cfg, args)
        set_up(cfg, args)
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

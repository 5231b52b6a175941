"""Train and evaluate Mask R-CNN on a pretrained backbone, in Detectron2's command-line habits."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from .common.arguments import argument_parser
from .common.errors import quiet_trainer, stopped_by_sigterm

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

EXAMPLE = """examples:
  DETECTRON2_DATASETS=/data python tools/train_net.py --config-file configs/coco_loco_frozen.yaml \\
      MODEL.WEIGHTS output/loco.pkl OUTPUT_DIR output/coco_frozen
  python tools/train_net.py --config-file configs/coco_loco_finetune.yaml MODEL.WEIGHTS output/loco.pkl \\
      DATASETS.CUSTOM.TRAIN_JSON my/train.json DATASETS.CUSTOM.TRAIN_IMAGES my/images \\
      DATASETS.CUSTOM.TEST_JSON my/val.json DATASETS.CUSTOM.TEST_IMAGES my/images
Every key: Detectron2's config reference, and loco_det/config.py for those that we add."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = argument_parser(EXAMPLE).parse_args(argv)
    from .common.launch import launch

    launch(run, args)


def run(args: argparse.Namespace) -> None:
    """What each process of the run does: train, or with --eval-only evaluate.

    Raises:
        ValueError: if the config, the data, the weights or the folder is refused.
        OSError: if a file cannot be read or written.
    """
    import torch
    from detectron2.config import get_cfg
    from detectron2.utils import comm

    from pretrain.processes.cpu import prepare_cpu

    from ..config import add_loco_config
    from ..data.datasets import prepare_datasets
    from ..engine.checks import check_run, freeze_warning, size_warning
    from ..engine.eval_only import evaluate
    from ..engine.trainer import Trainer
    from .common.config import merge_config
    from .common.run_folder import refuse_finished, run_folder

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
        prepare_datasets(cfg, args.eval_only)
        check_run(cfg, args.resume, args.eval_only)
        if not args.eval_only and (warning := freeze_warning(cfg)):
            print(f"WARNING: {warning}", flush=True)
        cfg = config_to_run(cfg, args)
        cfg = set_up(cfg, args)
        quiet_trainer()
        prepare_cpu(cfg.MODEL.DEVICE, cfg.MODEL.KEEP_FREED_MEMORY)
        if not args.eval_only:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        with stopped_by_sigterm("there is no result; the same command starts anew"):
            evaluate(cfg, args.resume)
    else:
        trainer.train()


def config_to_run(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """The config as it is run, frozen: scaled to the number of processes, with a seed; what is in the folder counts.

    Raises:
        ValueError: if it cannot be evaluated, or contradicts the run that is resumed.
    """
    from detectron2.utils import comm

    from ..engine.resume import check_evaluated, check_resumed
    from ..engine.trainer import Trainer

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


def set_up(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """As Detectron2's ``default_setup``, without the config's 700 lines in the log: they are in config.yaml.

    Returns:
        The config with a precision that suits the machine.
    """
    import torch
    from detectron2.utils import comm
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.env import seed_all_rng

    from pretrain.engine.logs import start_logs
    from pretrain.files.checkpoints import write_config

    from ..engine.precision import with_precision

    start_logs(cfg.OUTPUT_DIR, "fvcore", "detectron2", "loco_det", "pretrain")
    logger = logging.getLogger("loco_det")
    logger.info(
        f"Process {comm.get_rank()} of {comm.get_world_size()}. Environment info:\n{collect_env_info()}",
        extra={"brief": True},
    )
    logger.info(f"Command line arguments: {args}")
    if not args.eval_only:
        cfg = with_precision(cfg)
    if comm.is_main_process():
        write_config(cfg)
    seed_all_rng(cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    return cfg

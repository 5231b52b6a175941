"""Pretrain an encoder on a folder of unlabeled images, with Detectron2's command-line options."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING

from .common.arguments import argument_parser
from .common.errors import quiet_trainer
from .common.invocation import command_for

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

EXAMPLE = """example:
  python tools/pretrain.py --config-file configs/pretrain/imagenet/resnet50_loco_800ep.yaml \\
      DATASETS.TRAIN path/to/images OUTPUT_DIR output/loco
  torchrun --nproc-per-node 8 tools/pretrain.py --config-file configs/pretrain/imagenet/resnet50_loco_800ep.yaml \\
      --resume DATASETS.TRAIN path/to/images OUTPUT_DIR output/loco
Every key, with its default and meaning, is in pretrain/config.py."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(EXAMPLE)
    args = parser.parse_args(argv)
    if args.eval_only:
        parser.error("pretraining has nothing to evaluate: convert the checkpoint and run tools/train_net.py")
    from .common.launch import launch

    launch(run, args)


def run(args: argparse.Namespace) -> None:
    """What each process of the run does.

    Raises:
        ValueError: if the config or the folder is refused.
        OSError: if a file cannot be read or written.
    """
    from detectron2.utils import comm
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.env import seed_all_rng

    from pretrain.config import check, get_cfg
    from pretrain.engine.logs import start_logs
    from pretrain.engine.stage_parallel.trainer import trainer_of
    from pretrain.files.checkpoints import checkpoint_names, write_config
    from pretrain.processes.cpu import prepare_cpu
    from pretrain.readout.knn import knn_evaluator

    from .common.config import merge_config
    from .common.run_folder import refuse_finished, run_folder

    quiet_trainer()
    cfg = merge_config(get_cfg(), args)
    check(cfg)
    cfg.freeze()
    with run_folder(cfg.OUTPUT_DIR):
        if not args.resume:
            refuse_finished(cfg.OUTPUT_DIR)
        start_logs(cfg.OUTPUT_DIR, "fvcore", "pretrain")
        prepare_cpu(cfg.MODEL.DEVICE, cfg.MODEL.KEEP_FREED_MEMORY)
        seed_all_rng(cfg.SEED)
        trainer = trainer_of(cfg)(cfg, args.resume, knn_evaluator(cfg))
        if comm.is_main_process():
            write_config(trainer.cfg)
        environment = collect_env_info().partition("PyTorch built with")[0]
        logging.getLogger("pretrain").info(
            f"Environment info:\n{environment}", extra={"brief": True}
        )  # for the model card
    trainer.train()
    if comm.is_main_process() and checkpoint_names(cfg.OUTPUT_DIR)[:1] == ["model_final.pth"]:
        logging.getLogger("pretrain").info(f"next: {conversion(cfg)}")


def conversion(cfg: CfgNode) -> str:
    """The command line that converts the run's encoder, in the form in which this command was called."""
    from pretrain.encoders import is_own_code

    files = [os.path.join(cfg.OUTPUT_DIR, name) for name in ("model_final.pth", "backbone.pkl")]
    own = ["--arch", cfg.MODEL.ENCODER] if is_own_code(cfg.MODEL.ENCODER) else []
    return command_for("convert_to_d2.py", *files, *own)

#!/usr/bin/env python3
"""Linear readout: train linear classifiers on a frozen encoder's features, of every stage, and test them."""

import logging
import sys
from pathlib import Path

# Before tools/, where the command line pretrain.py would hide the package pretrain.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import argument_parser, launch, merge_config, one_line_errors, quiet_trainer, run_folder
from detectron2.utils import comm

from loco_det.convert import add_encoder_config, load_encoder_of
from pretrain.engine.logs import start_logs
from pretrain.engine.precision import with_precision
from pretrain.files.checkpoints import write_config
from pretrain.readout.config import check, get_cfg
from pretrain.readout.features import PooledEncoder
from pretrain.readout.probe import LinearProbe
from pretrain.readout.results import refuse_others

EXAMPLE = """example:
  python tools/linear_probe.py --config-file configs/readout/imagenet/linear.yaml \\
      MODEL.WEIGHTS output/loco/model_final.pth OUTPUT_DIR output/loco_linear
  python tools/linear_probe.py --config-file configs/readout/cached.yaml MODEL.WEIGHTS moco_v2_800ep_pretrain.pth.tar \\
      DATASETS.TRAIN imagenette/train DATASETS.TEST imagenette/val OUTPUT_DIR output/moco_linear
MODEL.WEIGHTS is any checkpoint that tools/convert_to_d2.py takes. A folder of images has one sub-folder for each class.
Every key, with its default and meaning, is in pretrain/readout/config.py, those of MODEL.SOURCE in
loco_det/convert/encoder.py. Accuracies are in OUTPUT_DIR/results.json, curves in probe.png.

exit code: 0 done, or stopped by SIGTERM with a checkpoint; 1 failure; 2 bad usage or input"""


def main(args):
    quiet_trainer()
    cfg = get_cfg()
    add_encoder_config(cfg)
    merge_config(cfg, args)
    check(cfg)
    cfg.freeze()
    readable = load_encoder_of(cfg)
    with run_folder(cfg.OUTPUT_DIR):
        refuse_others(cfg.OUTPUT_DIR, "linear")
        start_logs(cfg.OUTPUT_DIR, "fvcore", "pretrain")
        for note in (readable.summary(), *readable.source.notes):
            logging.getLogger("pretrain").info(f"{cfg.MODEL.WEIGHTS}: {note}")
        cfg = with_precision(cfg, args.resume)
        torch.set_flush_denormal(True)  # as in pretraining
        (mean, std), stages = readable.conventions[1:3], cfg.MODEL.STAGES or readable.encoder.feature_names
        encoder = PooledEncoder(readable.encoder, mean, std, stages, cfg.SOLVER.AMP.ENABLED)
        encoder.to(cfg.MODEL.DEVICE, memory_format=torch.channels_last)
        probe = LinearProbe(cfg, encoder, readable.description(), args.resume)
        if comm.is_main_process():
            write_config(cfg)
    probe.train()


if __name__ == "__main__":
    parser = argument_parser(EXAMPLE)
    arguments = parser.parse_args()
    if arguments.eval_only:
        parser.error("there is nothing to evaluate before it is trained: leave out --eval-only")
    with one_line_errors():
        launch(main, arguments)

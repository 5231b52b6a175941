"""Linear readout: train linear classifiers on a frozen encoder's features, of every stage, and test them."""

import argparse

from .common.arguments import argument_parser
from .common.errors import quiet_trainer

EXAMPLE = """example:
  python tools/linear_probe.py --config-file configs/readout/imagenet/linear.yaml \\
      MODEL.WEIGHTS output/loco/model_final.pth OUTPUT_DIR output/loco_linear
  python tools/linear_probe.py --config-file configs/readout/cached.yaml MODEL.WEIGHTS moco_v2_800ep_pretrain.pth.tar \\
      DATASETS.TRAIN imagenette/train DATASETS.TEST imagenette/val OUTPUT_DIR output/moco_linear
MODEL.WEIGHTS is whatever tools/convert_to_d2.py takes: a file, an address, or a name of tools/checkpoints.py. A folder
of images has one sub-folder for each class.
Every key, with its default and meaning, is in pretrain/readout/config.py, those of MODEL.SOURCE in
loco_det/convert/encoder.py. Accuracies are in OUTPUT_DIR/results.json, curves in probe.png.

exit code: 0 done, or stopped by SIGTERM with a checkpoint; 1 failure; 2 bad usage or input"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(EXAMPLE)
    args = parser.parse_args(argv)
    if args.eval_only:
        parser.error("there is nothing to evaluate before it is trained: leave out --eval-only")
    from .common.launch import launch

    launch(run, args)


def run(args: argparse.Namespace) -> None:
    """What each process of the run does.

    Raises:
        ValueError: if the config, the checkpoint or the folder is refused.
        OSError: if a file cannot be read or written.
    """
    from detectron2.utils import comm

    from pretrain.files.checkpoints import write_config
    from pretrain.readout.probe import LinearProbe

    from ..convert import load_encoder_of
    from .common.readout import begin_readout, pooled_encoder, readout_config
    from .common.run_folder import run_folder

    quiet_trainer()
    cfg = readout_config(args)
    readable = load_encoder_of(cfg)
    with run_folder(cfg.OUTPUT_DIR):
        cfg = begin_readout(cfg, readable, "linear", "fvcore", "pretrain", resume=args.resume)
        probe = LinearProbe(cfg, pooled_encoder(cfg, readable), readable.description(), args.resume)
        if comm.is_main_process():
            write_config(cfg)
    probe.train()

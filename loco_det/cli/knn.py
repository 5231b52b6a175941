"""Classify images by the nearest neighbours of an encoder's features, stage by stage; nothing is learned."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import math
import os
import time
from typing import TYPE_CHECKING

from .common.arguments import argument_parser
from .common.errors import stopped_by_sigterm

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from pretrain.files.results import KnnResults
    from pretrain.readout.labelled import Labelled

    from ..convert import Readable

EXAMPLE = """examples:
  python tools/knn.py --config-file configs/readout/knn.yaml MODEL.WEIGHTS output/loco/model_final.pth \\
      DATASETS.TRAIN path/to/train DATASETS.TEST path/to/val OUTPUT_DIR output/loco_knn
  python tools/knn.py MODEL.WEIGHTS moco_v2_800ep_pretrain.pth.tar DATASETS.TRAIN path/to/images DATASETS.TEST "" \\
      KNN.K "[10, 20, 100, 200]" OUTPUT_DIR output/moco_knn
MODEL.WEIGHTS is whatever tools/convert_to_d2.py takes: a file, an address, or a name of tools/checkpoints.py. A folder
of images has one sub-folder for each class; with DATASETS.TEST "" each image is classified by the others. Every key,
with its default and meaning, is in pretrain/readout/config.py, those of MODEL.SOURCE in loco_det/convert/encoder.py.

exit code: 0 results.json is in OUTPUT_DIR, 1 failure, 2 bad usage or input, 143 stopped by SIGTERM"""

logger = logging.getLogger("pretrain")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(EXAMPLE)
    args = parser.parse_args(argv)
    if args.eval_only or args.resume:
        parser.error("nothing is trained: leave out --eval-only and --resume; features are kept in FEATURES.CACHE")
    from .common.launch import launch

    launch(run, args)


def run(args: argparse.Namespace) -> None:
    """What each process of the run does.

    Raises:
        ValueError: if the config, the checkpoint, the images or the folder is refused.
        OSError: if a file cannot be read or written.
    """
    from detectron2.utils import comm

    from pretrain.files.checkpoints import write_config
    from pretrain.readout.knn import warn_of_k
    from pretrain.readout.labelled import labelled_splits, warn_of_images

    from ..convert import load_encoder_of
    from .common.readout import begin_readout, readout_config
    from .common.run_folder import run_folder

    start = time.perf_counter()
    cfg = readout_config(args)
    train, test = labelled_splits(cfg.DATASETS)
    readable = load_encoder_of(cfg)
    with run_folder(cfg.OUTPUT_DIR):
        cfg = begin_readout(cfg, readable, "knn", "pretrain")
        path = os.path.join(cfg.OUTPUT_DIR, "results.json")
        if comm.is_main_process():
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)  # of an earlier run: what is there is what this run has found
            write_config(cfg)
            warn_of_images(train, test, cfg.INPUT.CROP_SIZE)
            warn_of_k(cfg.KNN.K, len(train.paths) - (test is None))
    with stopped_by_sigterm("there is no result; the same command starts anew"):
        results = evaluate(cfg, readable, train, test)
    if results:
        logger.info(table(results, cfg))
        results.protocol = {"crop_size": cfg.INPUT.CROP_SIZE, "leave_one_out": not cfg.DATASETS.TEST}
        results.seconds = round(time.perf_counter() - start, 1)
        results.write(path)


def evaluate(cfg: CfgNode, readable: Readable, train: Labelled, test: Labelled | None) -> KnnResults | None:
    """The results with "weights", "images" and "knn"; None in other processes than the first.

    Args:
        cfg: the readout's config.
        readable: of :func:`load_encoder_of`.
        train, test: of :func:`labelled_splits`.
    """
    import torch
    from detectron2.utils import comm

    from pretrain.files.results import Accuracies, KnnKey, KnnResults
    from pretrain.readout.features import cached_features
    from pretrain.readout.knn import knn_of_features

    from .common.readout import pooled_encoder

    encoder = pooled_encoder(cfg, readable)
    weights = readable.description()
    splits = [split for split in (train, test) if split]
    features = cached_features(encoder, [split.paths for split in splits], cfg, weights)
    if not comm.is_main_process():
        return None
    labels = [torch.tensor(split.labels)[known] for split, (_, known) in zip(splits, features, strict=True)]
    bank, queries = features[0][0], features[1][0] if test else None
    images = {"train": len(labels[0]), "test": len(labels[-1]), "classes": len(train.class_names)}
    knn: dict[str, dict[KnnKey, Accuracies]] = {name: {} for name in bank}
    for k, temperature in itertools.product(voting(cfg, images), cfg.KNN.TEMPERATURE):
        options = images["classes"], k, temperature, cfg.MODEL.DEVICE
        for name, tops in knn_of_features(bank, labels[0], queries, labels[-1], *options).items():
            finite = {which: value if math.isfinite(value) else None for which, value in tops.items()}
            knn[name][KnnKey(k, temperature)] = Accuracies(**finite)
    return KnnResults(weights=weights, images=images, knn=knn)


def voting(cfg: CfgNode, images: dict[str, int]) -> list[int]:
    """KNN.K without what is above the number of neighbours that an image has: that number stands for all of these."""
    neighbours = images["train"] - (not cfg.DATASETS.TEST)
    return list(dict.fromkeys(min(k, neighbours) for k in cfg.KNN.K))


def table(results: KnnResults, cfg: CfgNode) -> str:
    """Lines of text: the accuracies of each stage with every K and TEMPERATURE."""
    from pretrain.files.tables import GENERAL, PLAIN, Column, Table, decimals

    images, columns = results.images or {}, [Column("stage"), Column("k", PLAIN), Column("temperature", GENERAL)]
    by = f"{images['train']} training images" if cfg.DATASETS.TEST else "the others"
    shown = Table([*columns, Column("top-1", decimals(2)), Column("top-5", decimals(2))])
    for stage, settings in results.knn.items():
        for key, tops in settings.items():
            shown.rows.append({"stage": stage, **key._asdict(), "top-1": tops.top1, "top-5": tops.top5})
    title = f"kNN accuracy (%) of {images['test']} images of {images['classes']} classes by {by}:"
    return f"{title}\n{shown.terminal()}"

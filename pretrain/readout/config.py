"""The config of a readout, linear or kNN: every key, its default and its meaning. Unknown keys are errors."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode as CN

from ..config import Config, value_of
from ..processes.cores import default_workers
from .results import rate_name


def get_cfg() -> Config:
    """A new config with the defaults: the linear readout of the LoCo paper."""
    _C = Config()
    _C.OUTPUT_DIR = "./output/readout"
    _C.SEED = 0  # of the held-out images, the classifiers' initial weights, the order of the data and augmentation

    _C.MODEL = CN()
    _C.MODEL.WEIGHTS = ""  # what tools/convert_to_d2.py takes: a file, an address, a name of tools/checkpoints.py
    _C.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    _C.MODEL.KEEP_FREED_MEMORY = True  # on a CPU, for speed (pretrain/processes/cpu.py); False: for other processes
    _C.MODEL.STAGES = []  # stages to read, such as "res5" or "res5+expansion"; []: all stages of the encoder

    _C.DATASETS = CN()  # folders with one sub-folder of images for each class
    _C.DATASETS.TRAIN = "datasets/imagenet/train"
    _C.DATASETS.TEST = "datasets/imagenet/val"  # kNN only: "": each image of TRAIN is classified by the others
    # Share of each class of TRAIN that is held out to choose the learning rate of each stage. 0: it is chosen on TEST,
    # as published sweeps often do, and every output says so. Needed only with several BASE_LR.
    _C.DATASETS.HELD_OUT = 0.0

    _C.DATALOADER = CN()
    # Processes that decode and augment. 0: none. The default is one a core, 8 at most
    _C.DATALOADER.NUM_WORKERS = default_workers(8)

    _C.INPUT = CN()  # training: random resized crop and flip; test: shorter side to 256 / 224 of the crop, central crop
    _C.INPUT.CROP_SIZE = 224  # side of a view, in pixels
    _C.INPUT.CROP_AREA = [0.08, 1.0]  # range of the random crop's area, as a share of the image's

    _C.FEATURES = CN()
    _C.FEATURES.CACHED = False  # True: no augmentation; the features of each image's central crop are computed once
    _C.FEATURES.CACHE = ""  # their file, which kNN and linear readouts may share; "": OUTPUT_DIR/features.pth
    # Subtract each feature's mean and divide by its standard deviation (BN without affine, as in MAE's linear probe),
    # so that one learning rate suits all stages. Cached features: statistics of all training images; otherwise of the
    # batch, and running averages in tests.
    _C.FEATURES.STANDARDIZE = False

    _C.SOLVER = CN()
    _C.SOLVER.OPTIMIZER = "SGD"  # SGD or LARS
    _C.SOLVER.IMS_PER_BATCH = 256  # images in a step, over all processes
    # For 256 images: the learning rate is BASE_LR * IMS_PER_BATCH / 256. Each stage has a classifier per BASE_LR.
    _C.SOLVER.BASE_LR = [30.0]
    _C.SOLVER.MOMENTUM = 0.0
    _C.SOLVER.NESTEROV = False
    _C.SOLVER.WEIGHT_DECAY = 0.0  # of weights and, except with LARS, biases, as in the published linear evaluations
    _C.SOLVER.EPOCHS = 100.0  # in whole batches; may be a fraction
    _C.SOLVER.SCHEDULE = "steps"  # steps; or cosine to 0, changed every iteration
    _C.SOLVER.STEPS = [30.0, 60.0, 90.0]  # epochs after which the learning rate is multiplied by GAMMA
    _C.SOLVER.GAMMA = 0.1
    _C.SOLVER.EVAL_PERIOD = 10.0  # epochs between tests; a test also follows the last iteration
    _C.SOLVER.CHECKPOINT_PERIOD = 1000  # iterations
    _C.SOLVER.LOG_PERIOD = 20  # iterations between lines on the terminal and in metrics.json

    _C.SOLVER.AMP = CN()
    # bfloat16 autocast of the encoder; the classifiers stay in float32. auto: if MODEL.DEVICE is faster with it
    # (pretrain/engine/precision.py); decided at the start of the run, whose config.yaml has True or False
    _C.SOLVER.AMP.ENABLED = False

    _C.KNN = CN()  # tools/knn.py only; every K is combined with every TEMPERATURE
    _C.KNN.K = [200]  # neighbours that vote; both defaults of Wu et al. 2018 (arXiv 1805.01978)
    _C.KNN.TEMPERATURE = [0.07]
    return _C


def check(cfg: CN) -> None:
    """Refuse values that cannot work, before they fail late or unnoticed.

    Args:
        cfg: the readout's config.

    Raises:
        ValueError: naming the key.
        OSError: if a config.yaml in OUTPUT_DIR cannot be read.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("set MODEL.WEIGHTS to the checkpoint whose features are to be read")
    if os.path.realpath(cfg.OUTPUT_DIR) == os.path.dirname(os.path.realpath(cfg.MODEL.WEIGHTS)):
        raise ValueError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} is the folder of MODEL.WEIGHTS, whose files stay: name another")
    found = Path(cfg.OUTPUT_DIR, "config.yaml")  # every run writes one, but only a readout's has FEATURES
    if found.is_file() and not re.search("^FEATURES:", found.read_text(errors="replace"), re.MULTILINE):
        raise ValueError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds another kind of run, whose files stay: name another")
    cache = cfg.FEATURES.CACHE
    if cache and os.path.realpath(cache) == os.path.realpath(cfg.MODEL.WEIGHTS):
        raise ValueError(f"FEATURES.CACHE {cache} is MODEL.WEIGHTS, which stays: name another file")
    least = {
        "SEED": 0, "DATALOADER.NUM_WORKERS": 0, "INPUT.CROP_SIZE": 1, "SOLVER.IMS_PER_BATCH": 1, "SOLVER.MOMENTUM": 0,
        "SOLVER.WEIGHT_DECAY": 0, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.LOG_PERIOD": 1,
    }  # fmt: skip
    for key, bound in least.items():
        if not bound <= value_of(cfg, key) < math.inf:
            raise ValueError(f"{key} is {value_of(cfg, key)}, but must be at least {bound}, and finite")
    for key in ("SOLVER.EPOCHS", "SOLVER.EVAL_PERIOD", "SOLVER.GAMMA"):
        if not 0 < value_of(cfg, key) < math.inf:
            raise ValueError(f"{key} is {value_of(cfg, key)}, but must be above 0, and finite")
    for key in ("SOLVER.BASE_LR", "KNN.K", "KNN.TEMPERATURE"):
        values, whole = value_of(cfg, key), key == "KNN.K"
        if not values or not _are_numbers(values, (int,) if whole else (int, float)) or min(values) <= 0:
            raise ValueError(
                f"{key} is {values}, but must be a list of one or more {'whole ' * whole}numbers above 0, all finite"
            )
        if len(set(values if whole else map(rate_name, values))) < len(values):
            raise ValueError(f"{key} is {values}: the same value twice, in the six digits that results are named by")
    area = cfg.INPUT.CROP_AREA
    if len(area) != 2 or not _are_numbers(area) or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(
            f"INPUT.CROP_AREA is {area}, but must be two numbers, the smaller one first, above 0, at most 1"
        )
    if not 0 <= cfg.DATASETS.HELD_OUT < 1:
        raise ValueError(f"DATASETS.HELD_OUT is {cfg.DATASETS.HELD_OUT}, but must be at least 0 and below 1")
    for key, known in (("SOLVER.OPTIMIZER", ("SGD", "LARS")), ("SOLVER.SCHEDULE", ("steps", "cosine"))):
        if value_of(cfg, key) not in known:
            raise ValueError(f"{key} is {value_of(cfg, key)!r}: choose {' or '.join(known)}")
    if cfg.SOLVER.NESTEROV and not cfg.SOLVER.MOMENTUM:
        raise ValueError("SOLVER.NESTEROV True needs SOLVER.MOMENTUM above 0")
    steps = cfg.SOLVER.STEPS
    if not _are_numbers(steps):
        raise ValueError(f"SOLVER.STEPS is {steps}, but must be a list of numbers, all finite")
    if cfg.SOLVER.SCHEDULE == "steps" and not all(
        a < b for a, b in zip([0, *steps], [*steps, cfg.SOLVER.EPOCHS], strict=True)
    ):
        raise ValueError(
            f"SOLVER.STEPS is {steps}, but must ascend from above 0 to below SOLVER.EPOCHS {cfg.SOLVER.EPOCHS:g}"
        )


def _are_numbers(values: Sequence, kinds: tuple[type, ...] = (int, float)) -> bool:
    """Whether all values are finite numbers; True and False are not."""
    return all(type(value) in kinds and abs(value) < math.inf for value in values)

"""An encoder of two stages, and labelled images that are easy or hard to tell apart."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pretrain.config import get_cfg
from pretrain.readout import config as readout_config
from pretrain.readout.features import PooledEncoder


class Encoder(nn.Module):
    """Two stages, the second with BN and dropout; counts what it is shown."""

    def __init__(self):
        super().__init__()
        self.res2 = nn.Conv2d(3, 4, 3, stride=2)
        self.res3 = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        self.shown = []

    def forward(self, x):
        self.shown.append(x.clone(memory_format=torch.preserve_format))
        h = self.res2(x)
        return {"res2": h, "res3": self.res3(h)}


def _write_images(folder, classes, per_class, seed=0, contrast=68):
    """Noise about each class's own colour, which any features tell apart unless ``contrast`` is small."""
    rng = np.random.default_rng(seed)
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        colour = np.random.default_rng(c).integers(128 - contrast, 128 + contrast, 3)
        for i in range(per_class):
            pixels = (colour + rng.integers(-60, 60, (40, 50, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def write_images():
    """``write_images(folder, classes, per_class, seed=0, contrast=68) -> folder``"""
    return _write_images


def _config(train="", test="", **keys):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    small = {"KNN.TRAIN": str(train), "KNN.TEST": str(test), "KNN.K": 3, "DATALOADER.NUM_WORKERS": 0,
             "INPUT.CROP_SIZE": 28}  # fmt: skip
    cfg.merge_from_list([part for pair in {**small, **keys}.items() for part in pair])
    return cfg


@pytest.fixture(scope="session")
def config():
    """``config(train, test, **keys)``: a pretraining config with kNN."""
    return _config


def _probe_config(folders, out, **keys):
    cfg = readout_config.get_cfg()
    small = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "weights.pth", "DATASETS.TRAIN": str(folders[0]),
             "DATASETS.TEST": str(folders[1]), "DATALOADER.NUM_WORKERS": 0, "INPUT.CROP_SIZE": 28,
             "FEATURES.CACHED": True, "SOLVER.IMS_PER_BATCH": 8, "SOLVER.BASE_LR": [10.0, 1.0], "SOLVER.EPOCHS": 4.0,
             "SOLVER.STEPS": [2.0], "SOLVER.EVAL_PERIOD": 2.0, "SOLVER.LOG_PERIOD": 1,
             "OUTPUT_DIR": str(out)}  # fmt: skip
    cfg.merge_from_list([part for pair in {**small, **keys}.items() for part in pair])
    readout_config.check(cfg)
    return cfg


@pytest.fixture(scope="session")
def probe_config():
    """``probe_config(folders, out, **keys)``: a readout's config, four epochs of three iterations on ``folders``."""
    return _probe_config


@pytest.fixture
def pooled(encoder):
    """The encoder, pooled, with ImageNet's mean and std."""
    return PooledEncoder(encoder.eval(), [123.675, 116.280, 103.530], [58.395, 57.120, 57.375])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder()


@pytest.fixture(scope="session")
def folders(write_images, tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    return write_images(root / "train", 6, 4), write_images(root / "test", 6, 2, seed=1)

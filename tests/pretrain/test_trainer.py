"""Every key of the config changes what is learned or written; resuming refuses what is not the same run."""

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.config import check, get_cfg
from pretrain.trainer import Trainer


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def config(images, out, **keys):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    small = {"DATASETS.TRAIN": str(images), "OUTPUT_DIR": str(out), "MODEL.ENCODER": "resnet18", "INPUT.CROP_SIZE": 32,
             "MODEL.DECODER.HIDDEN_DIM": 16, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.EPOCHS": 1.0, "SOLVER.BASE_LR": 10.0,
             "SOLVER.WARMUP_EPOCHS": 0.0, "DATALOADER.NUM_WORKERS": 0}  # fmt: skip
    cfg.merge_from_list([part for pair in {**small, **keys}.items() for part in pair])
    check(cfg)
    return cfg


def train(cfg, resume=False):
    """Two steps; returns the encoder's parameters as one vector."""
    torch.manual_seed(cfg.SEED)
    trainer = Trainer(cfg, resume)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.learner.encoder.parameters()])


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    return train(config(images, out)), out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", 1),
        ("INPUT.CROP_SIZE", 40),
        ("INPUT.JITTER_STRENGTH", 0.5),
        ("MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0]),
        ("MODEL.PIXEL_STD", [255.0, 255.0, 255.0]),
        ("MODEL.UNITS", [["res2"], ["res3"], ["res4"], ["res5"]]),
        ("MODEL.DECODER.CONV_BLOCKS", 0),
        ("MODEL.DECODER.DOWNSAMPLE", False),
        ("MODEL.DECODER.HIDDEN_DIM", 24),
        ("MODEL.DECODER.OUT_DIM", 64),
        ("MODEL.DECODER.OUT_BN", False),
        ("LOSS.TEMPERATURE", 0.5),
        ("SOLVER.OPTIMIZER", "SGD"),
        ("SOLVER.IMS_PER_BATCH", 8),
        ("SOLVER.BASE_LR", 1.0),
        ("SOLVER.MOMENTUM", 0.5),
        ("SOLVER.WEIGHT_DECAY", 0.1),
        ("SOLVER.EPOCHS", 2.0),
        ("SOLVER.WARMUP_EPOCHS", 0.5),
        ("SOLVER.AMP.ENABLED", True),
    ],
)
def test_key_changes_what_is_learned(images, reference, tmp_path, key, value):
    assert not torch.equal(train(config(images, tmp_path, **{key: value})), reference[0])


def test_the_same_config_learns_the_same(images, reference, tmp_path):
    assert torch.equal(train(config(images, tmp_path)), reference[0])


@pytest.mark.parametrize(("key", "value"), [("MODEL.DECODER.HIDDEN_DIM", 24), ("SOLVER.BASE_LR", 1.0), ("SEED", 3)])
def test_another_run_is_not_resumed(images, reference, key, value):
    with pytest.raises(ValueError, match=f"a run with other values of {key}: "):
        Trainer(config(images, reference[1], **{key: value}), resume=True)


@pytest.mark.parametrize("content", [b"", b"words\n" * 50, None])
def test_damaged_checkpoints_are_not_resumed(images, tmp_path, content):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    if content is not None:
        (tmp_path / "model_0000001.pth").write_bytes(content)
    error = FileNotFoundError if content is None else ValueError
    with pytest.raises(error, match="not there" if content is None else "damaged or no checkpoint of ours"):
        Trainer(config(images, tmp_path), resume=True)


def test_a_failure_in_the_first_step_is_the_one_reported(images, tmp_path):
    bad = tmp_path / "images"
    bad.mkdir()
    for path in images.iterdir():
        (bad / path.name).write_bytes(path.read_bytes()[: 100 if path.stem in "0123" else None])
    with pytest.raises(OSError, match="images are unreadable, more than DATASETS.MAX_UNREADABLE"):
        train(config(bad, tmp_path / "out"))
    for path in bad.iterdir():
        path.write_bytes(b"")
    with pytest.raises(OSError, match="images in a row are unreadable"):
        train(config(bad, tmp_path / "out"))

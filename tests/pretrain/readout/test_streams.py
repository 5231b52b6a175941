"""Batches: which images, in what order, seen how; held-out ones are never among them."""

import itertools
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.config import get_cfg
from pretrain.data import loader
from pretrain.data.augment import SimCLRView
from pretrain.files.images import read_image
from pretrain.readout.labelled import central_crop, list_labelled
from pretrain.readout.streams import AugmentedStream, CachedStream, RandomCrops

WEIGHTS = {"path": "weights.pth", "sha256": "0" * 64}


def stream(cfg, pooled):
    return CachedStream(cfg, pooled, WEIGHTS) if cfg.FEATURES.CACHED else AugmentedStream(cfg, pooled)


def test_cached_batches_are_permutations_and_resume(folders, pooled, probe_config, tmp_path):
    cfg = probe_config(folders, tmp_path, **{"DATASETS.HELD_OUT": 0.25, "SOLVER.IMS_PER_BATCH": 5, "SEED": 2})
    found = stream(cfg, pooled)
    assert found.counts == {"train": 18, "held_out": 6, "test": 12, "classes": 6}
    batches = [(f["res3"], labels) for f, labels in itertools.islice(found.batches(0), 7)]
    rows = found.rows[np.concatenate([np.random.default_rng([2, e]).permutation(18)[:15] for e in range(3)])[:35]]
    assert torch.equal(torch.cat([f for f, _ in batches]), found.features["res3"][rows])
    assert torch.equal(torch.cat([labels for _, labels in batches]), found.labels[rows])
    later = next(found.batches(5))
    assert torch.equal(later[0]["res3"], batches[5][0]) and torch.equal(later[1], batches[5][1])


def is_one_of(features, several):
    return any(torch.allclose(features, other, atol=1e-5) for other in several)


def test_held_out_images_are_never_trained_on(folders, pooled, probe_config, tmp_path, monkeypatch):
    keys = {"DATASETS.HELD_OUT": 0.25, "SOLVER.IMS_PER_BATCH": 6, "INPUT.CROP_SIZE": 20}
    paths = list_labelled(folders[0]).paths
    views = np.stack([central_crop(read_image(path), 20) for path in paths])
    central = pooled(torch.from_numpy(views).permute(0, 3, 1, 2))["res3"]
    for cached in (True, False):
        found = stream(probe_config(folders, tmp_path, **{**keys, "FEATURES.CACHED": cached}), pooled)
        sets = found.test_features()
        assert len(sets["held_out"][1]) == 6 and len(sets["test"][1]) == 12
        held_out = {path for path, f in zip(paths, central, strict=True) if is_one_of(f, sets["held_out"][0]["res3"])}
        assert len(held_out) == 6
        read = []
        monkeypatch.setattr(loader, "read_image", lambda path, read=read: read.append(path) or read_image(path))
        batches = itertools.islice(found.batches(0), 3)  # an epoch
        if cached:
            seen = torch.cat([f["res3"] for f, _ in batches])
            read = [path for path, f in zip(paths, central, strict=True) if is_one_of(f, seen)]
        else:
            assert len(list(batches)) == 3
        assert sorted(read) == sorted({*paths} - held_out)


def test_augmented_batches_are_random_crops_and_resume(folders, pooled, probe_config, tmp_path):
    keys = {"FEATURES.CACHED": False, "INPUT.CROP_AREA": [0.3, 0.6], "SEED": 5}
    cfg = probe_config(folders, tmp_path, **keys)
    labelled = list_labelled(folders[0])
    augmentation = get_cfg().INPUT
    augmentation.CROP_SIZE, augmentation.CROP_AREA = 28, [0.3, 0.6]
    view, order = SimCLRView(augmentation, colour=False), np.random.default_rng([5, 1]).permutation(24)
    for workers in (0, 1):
        cfg.DATALOADER.NUM_WORKERS = workers
        features, labels = next(stream(cfg, pooled).batches(4))  # the second batch of the second epoch
        views = [
            view(read_image(labelled.paths[index]), np.random.default_rng([5, 32 + i]), 0)
            for i, index in enumerate(order[8:16])
        ]
        expected = pooled(torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2))
        torch.testing.assert_close(features["res3"], expected["res3"], rtol=1e-5, atol=1e-6)
        assert labels.tolist() == [labelled.labels[i] for i in order[8:16]]
        assert not features["res3"].requires_grad and not pooled.encoder.training


def test_an_unreadable_image_is_replaced_with_its_label_and_named(write_images, pooled, probe_config, tmp_path, caplog):
    folder = write_images(tmp_path / "torn", 2, 4)
    (folder / "class0/3.png").write_bytes(b"")
    test = shutil.copytree(folder, tmp_path / "test")
    cfg = probe_config((folder, test), tmp_path / "out", **{"FEATURES.CACHED": False, "SOLVER.IMS_PER_BATCH": 8})
    crops = RandomCrops(list_labelled(folder), cfg)
    view, label, unreadable = crops[0, 3]
    assert label == 1 and unreadable == [str(folder / "class0/3.png")]
    assert np.array_equal(view, crops[0, 4][0]) and crops[0, 2][1:] == (0, [])
    with caplog.at_level(logging.WARNING):
        for _, labels in itertools.islice(stream(cfg, pooled).batches(0), 3):
            assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 1, 1]
    assert caplog.messages == [f"unreadable image left out: {folder / 'class0/3.png'}"]
    cfg.FEATURES.CACHED = True
    with pytest.raises(ValueError, match="7 training images are fewer than SOLVER.IMS_PER_BATCH 8: set it to 7"):
        stream(cfg, pooled)
    cfg.SOLVER.IMS_PER_BATCH = 7
    found = stream(cfg, pooled)
    assert found.counts == {"train": 7, "held_out": 0, "test": 7, "classes": 2}
    assert sorted(next(found.batches(0))[1].tolist()) == [0, 0, 0, 1, 1, 1, 1]
    for path in folder.glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(OSError, match="8 images in a row are unreadable, the last: .*class1/1.png"):
        crops[0, 6]


def test_test_images_are_needed(folders, pooled, probe_config, tmp_path):
    with pytest.raises(ValueError, match="DATASETS.TEST is empty: a linear readout needs test images"):
        stream(probe_config((folders[0], ""), tmp_path), pooled)


def test_unreadable_images_are_not_counted_as_tested(write_images, pooled, probe_config, tmp_path):
    folders = write_images(tmp_path / "train", 2, 4), write_images(tmp_path / "test", 2, 3)
    cfg = probe_config(folders, tmp_path, **{"FEATURES.CACHED": False, "DATASETS.HELD_OUT": 0.5,
                                             "SOLVER.IMS_PER_BATCH": 4})  # fmt: skip
    found = stream(cfg, pooled)
    for path in (folders[1] / "class0/1.png", found.train.paths[found.held_out[0]]):
        Path(path).write_bytes(b"")
    sets = found.test_features()
    assert found.counts == {"train": 4, "held_out": 3, "test": 5, "classes": 2}
    assert {name: len(labels) for name, (_, labels) in sets.items()} == {"test": 5, "held_out": 3}
    Path(found.train.paths[found.rows[1]]).write_bytes(b"")
    next(found.batches(0))  # of all images to train on: the unreadable one is met
    found.test_features()
    assert found.counts == {"train": 3, "held_out": 3, "test": 5, "classes": 2}

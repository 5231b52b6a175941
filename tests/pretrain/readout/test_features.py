"""Pooled features: what they are, and what computing them must not touch."""

import logging
import os
import re
import resource
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.engine import progress
from pretrain.readout import features as module
from pretrain.readout.features import PooledEncoder, cached_features, pooled_features
from pretrain.readout.labelled import central_crop, list_labelled


def test_features_are_the_pooled_stages_of_the_central_crop(config, folders, encoder):
    cfg = config()
    paths = list_labelled(folders[0]).paths[:3]
    features, readable = pooled_features(PooledEncoder(encoder, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD), paths, cfg)
    assert readable.tolist() == [0, 1, 2] and features["res3"].dtype == torch.float32
    assert not features["res3"].requires_grad
    assert encoder.shown[0].is_contiguous(memory_format=torch.channels_last)
    encoder.eval()
    for i, path in enumerate(paths):
        image = torch.from_numpy(central_crop(np.asarray(Image.open(path)), 28).copy()).double()
        image = (image - torch.tensor(cfg.MODEL.PIXEL_MEAN)) / torch.tensor(cfg.MODEL.PIXEL_STD)
        for name, h in encoder(image.float().permute(2, 0, 1)[None]).items():
            pooled = h[0].flatten(1).mean(1)
            torch.testing.assert_close(features[name][i], pooled.detach(), rtol=1e-5, atol=1e-6)


def test_stages_are_chosen_and_missing_ones_named(pooled):
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert list(pooled(images)) == ["res2", "res3"]
    pooled.stages = ["res3"]
    assert list(pooled(images)) == ["res3"] and pooled(images)["res3"].shape == (2, 6)
    pooled.stages = ["res3", "res9"]
    with pytest.raises(ValueError, match="MODEL.STAGES: no stage 'res9' in this encoder, which has res2, res3"):
        pooled(images)


def test_autocast_rounds_the_encoder_only(pooled):
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    exact = pooled(images)["res3"]
    pooled.amp = True
    rounded = pooled(images)["res3"]
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


WEIGHTS = {"path": "weights.pth", "sha256": "0" * 64, "arch": "resnet18"}


class Cache:
    """Features of two lists of images, again and again."""

    def __init__(self, folders, pooled, cfg, caplog):
        self.pooled, self.cfg, self.caplog = pooled, cfg, caplog
        self.lists = [list_labelled(folder).paths for folder in folders]

    def __call__(self, weights=WEIGHTS):
        """The features, whether the encoder has seen the images, and what was logged."""
        self.pooled.encoder.shown.clear()
        self.caplog.clear()
        with self.caplog.at_level(logging.INFO, "pretrain.readout.features"):
            found = cached_features(self.pooled, self.lists, self.cfg, weights)
        return found, len(self.pooled.encoder.shown), " ".join(self.caplog.messages)


@pytest.fixture
def cache(folders, pooled, probe_config, tmp_path, caplog):
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders]
    return Cache(copies, pooled, probe_config(copies, tmp_path / "out"), caplog)


def test_features_are_computed_once(cache, tmp_path):
    first, passes, said = cache()
    path = tmp_path / "out/features.pth"
    assert passes == 2 and f"features of 36 images are written to {path}" in said
    for (features, readable), paths in zip(first, cache.lists, strict=True):
        expected, known = pooled_features(cache.pooled, paths, cache.cfg)
        assert torch.equal(readable, known) and list(features) == ["res2", "res3"]
        assert all(torch.equal(features[name], expected[name]) for name in features)
    second, passes, said = cache({**WEIGHTS, "path": "elsewhere.pth"})
    assert passes == 0 and f"features of 36 images are read from {path}" in said
    assert all(torch.equal(a[0][name], b[0][name]) for a, b in zip(first, second, strict=True) for name in a[0])
    cache.pooled.stages = ["res3"]  # a part of what is there
    assert list(cache()[0][0][0]) == ["res3"] and cache()[1] == 0
    assert [p.name for p in path.parent.iterdir()] == ["features.pth"]


def test_another_file_may_be_shared(cache, tmp_path):
    cache.cfg.FEATURES.CACHE = str(tmp_path / "shared/features.pth")
    assert cache()[1] == 2
    cache.cfg.OUTPUT_DIR = str(tmp_path / "other")
    assert cache()[1] == 0
    cache.lists = cache.lists[1:]  # kNN may want one list, the linear readout two
    assert cache()[1] == 0


def test_only_missing_lists_are_computed(cache):
    both = cache.lists
    cache.lists = both[:1]
    assert cache()[1] == 1
    cache.lists = both
    assert cache()[1] == 1 and cache()[1] == 0


def touch(cache):
    os.utime(cache.lists[1][3], (1, 1))


def grow(cache):
    with open(cache.lists[1][3], "ab") as f:
        f.write(b"0")


def flip_a_bit(cache):
    path = os.path.join(cache.cfg.OUTPUT_DIR, "features.pth")
    with open(path, "rb") as f:
        data = bytearray(f.read())
    values = torch.load(path, weights_only=True)["images"]
    part = next(iter(values.values()))[0]["res3"]
    data[data.index(part.numpy().tobytes()) + 1] ^= 1  # amid the features: torch.load notices nothing
    with open(path, "wb") as f:
        f.write(data)


def damage(cache):
    with open(os.path.join(cache.cfg.OUTPUT_DIR, "features.pth"), "wb") as f:
        f.write(b"PK nothing")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda cache: setattr(cache.cfg.INPUT, "CROP_SIZE", 24), "is of another crop"),
        (lambda cache: setattr(cache.pooled, "amp", True), "is of another amp"),
        (lambda cache: cache.pooled.mean.add_(1), "is of another mean"),
        (lambda cache: damage(cache), "cannot be used"),
        (lambda cache: flip_a_bit(cache), "cannot be used (a damaged checkpoint (checksum of"),
        (touch, "are written to"),
        (grow, "are written to"),
        (lambda cache: cache.lists[0].pop(), "are written to"),
    ],
)
def test_what_does_not_fit_is_computed_anew(cache, change, why):
    cache()
    change(cache)
    found, passes, said = cache()
    assert passes > 0 and why in said and len(found[0][1]) == len(cache.lists[0])


def test_other_weights_or_further_stages_are_computed_anew(cache):
    cache.pooled.stages = ["res2"]
    cache()
    cache.pooled.stages = ["res2", "res3"]
    _, passes, said = cache()
    assert passes == 2 and "has not all of res2, res3: the features are computed anew" in said
    _, passes, said = cache({**WEIGHTS, "sha256": "1" * 64})
    assert passes == 2 and "is of another sha256" in said


@pytest.mark.parametrize("content", ["checkpoint", "old checkpoint", "cut checkpoint", "text", "nothing"])
def test_a_file_that_is_not_of_features_is_left_alone(cache, tmp_path, content):
    path = tmp_path / "precious.pth"
    torch.save({"format": "loco-det pretraining"}, path, _use_new_zipfile_serialization=content != "old checkpoint")
    if "checkpoint" not in content or content.startswith("cut"):
        path.write_bytes({"text": b"notes", "nothing": b""}.get(content, path.read_bytes()[:-30]))
    before = path.read_bytes()
    cache.cfg.FEATURES.CACHE = str(path)
    with pytest.raises(ValueError, match="precious.pth is not a file of features.*: name another FEATURES.CACHE$"):
        cache()
    assert path.read_bytes() == before and not cache.pooled.encoder.shown


def test_nor_is_one_of_the_caches_own_name(cache, tmp_path):
    (tmp_path / "out").mkdir()
    torch.save({"model": torch.ones(1)}, tmp_path / "out/features.pth")
    with pytest.raises(ValueError, match="features.pth is not a file of features"):
        cache()
    assert torch.load(tmp_path / "out/features.pth")["model"] == 1


def test_lists_may_have_other_stages(cache):
    cache()
    cache.lists[1] = cache.lists[1][1:]  # another list, of res3 alone, beside one of both
    cache.pooled.stages = ["res3"]
    assert cache()[1] == 1
    cache.pooled.stages = ["res2", "res3"]
    found, passes, _ = cache()
    assert passes == 1 and [list(features) for features, _ in found] == [["res2", "res3"]] * 2


@pytest.mark.parametrize("place", ["a file/features.pth", "/proc/features.pth"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(cache, tmp_path, place):
    (tmp_path / "a file").touch()
    cache.cfg.FEATURES.CACHE = os.path.join(tmp_path, place)
    with pytest.raises(OSError, match=r"\[Errno .*; name another FEATURES.CACHE: '.*features.pth'$"):
        cache()
    assert not cache.pooled.encoder.shown


def test_a_full_disk_is_told_with_the_files_name(cache, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10, 1500):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # bytes a file may have
            with pytest.raises(OSError) as error:
                cache()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert re.fullmatch(rf"\[Errno \d+\] .*: '{tmp_path}/out/features.pth'", str(error.value))
        assert not list((tmp_path / "out").iterdir())


def test_progress_without_a_terminal_is_in_the_log(config, folders, encoder, caplog, monkeypatch, capsys):
    cfg, paths = config(), list_labelled(folders[0]).paths
    pooled = PooledEncoder(encoder, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    with caplog.at_level(logging.INFO, "pretrain.engine.progress"):
        pooled_features(pooled, paths, cfg)
        assert not caplog.messages  # it takes less than a few seconds
        clock = iter(range(0, 600, 6))  # seconds: 6 a batch
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        pooled_features(pooled, paths, cfg)
    assert caplog.messages == [  # after 6, 12 and 24 seconds
        f"pooled features: {done} of 24 images, eta: 0:00:{left}" for done, left in ((4, 30), (8, 24), (16, 12))
    ]
    assert capsys.readouterr().err == ""

"""kNN on pooled features: against loops by hand and lightly; what it must not touch; two processes against one."""

import copy
import logging
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.evaluation.testing import flatten_results_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from pretrain import readout
from pretrain.config import get_cfg
from pretrain.readout import (
    central_crop,
    knn_accuracies,
    knn_predict,
    labelled_splits,
    list_labelled,
    pooled_features,
)


def by_hand(query, bank, labels, num_classes, k, temperature, own=None):
    """Wu et al. 2018, Sec. 3.4, one query, float64: scores of all classes."""
    others = [i for i in range(len(bank)) if i != own]
    cosine = {i: float(query.double() @ bank[i].double()) for i in others}
    scores = [0.0] * num_classes
    for i in sorted(others, key=cosine.get, reverse=True)[:k]:
        scores[int(labels[i])] += math.exp((cosine[i] - 1) / temperature)
    return scores


def unit_vectors(count, dim, seed):
    return nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(2, 8), st.integers(1, 40), st.sampled_from([0.05, 0.07, 1.0]), st.booleans(),
       st.integers(0, 1000))  # fmt: skip
def test_equals_the_formula(neighbours, classes, k, temperature, leave_one_out, seed):
    bank = unit_vectors(neighbours, 4, seed)
    labels = torch.randint(classes, (neighbours,), generator=torch.Generator().manual_seed(seed))
    queries, own = (bank, torch.arange(neighbours)) if leave_one_out else (unit_vectors(7, 4, seed + 1), None)
    ranked = knn_predict(queries, bank, labels, classes, k, temperature, own)
    assert ranked.shape == (len(queries), min(5, classes))
    for i, row in enumerate(ranked.tolist()):
        scores = by_hand(queries[i], bank, labels, classes, k, temperature, i if leave_one_out else None)
        got = [scores[c] for c in row if c >= 0]  # compared by score: rounding may swap classes that are as good
        best = sorted((s for s in scores if s > 0), reverse=True)[:5]
        assert got == pytest.approx(best, rel=1e-4) and row[len(got) :] == [-1] * (len(row) - len(got))


def test_equals_lightly():
    knn = pytest.importorskip("lightly.utils.benchmarking.knn", reason="lightly is not installed")
    bank, queries = unit_vectors(500, 16, 0), unit_vectors(200, 16, 1)
    labels = torch.randint(10, (500,), generator=torch.Generator().manual_seed(2))
    for k, temperature in [(1, 0.1), (20, 0.07), (200, 0.1), (500, 0.5)]:
        expected = knn.knn_predict(queries, bank.T, labels, 10, k, temperature)[:, 0]
        assert torch.equal(knn_predict(queries, bank, labels, 10, k, temperature)[:, 0], expected)


def test_chunks_change_nothing(monkeypatch):
    bank, labels, own = unit_vectors(50, 8, 0), torch.arange(50) % 7, torch.arange(50)
    whole = knn_predict(bank, bank, labels, 7, 9, 0.07, own)
    monkeypatch.setattr(readout, "SIMILARITIES", 150)  # three queries at a time
    assert torch.equal(knn_predict(bank, bank, labels, 7, 9, 0.07, own), whole)


def test_edges():
    bank, labels = torch.eye(3), torch.tensor([2, 1, 0])
    assert knn_predict(bank[:1], bank, labels, 3, 1, 0.07).tolist() == [[2, -1, -1]]  # one neighbour, one vote
    assert knn_predict(bank[:1], bank, labels, 3, 99, 0.07).tolist() == [[2, 0, 1]]  # the first of equal classes
    near = nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0]]))
    assert knn_predict(bank[:1], near, labels[[0, 2]], 3, 2, 1e-3)[0, 0] == 2  # exp(1 / T) would be infinite for both
    assert knn_predict(bank[:0], bank, labels, 3, 3, 0.07).shape == (0, 3)
    one = torch.zeros(1, dtype=torch.long)
    assert knn_predict(bank[:1], bank, labels, 3, 99, 0.07, own=one)[0].tolist() == [0, 1, -1]  # not its own
    with pytest.raises(ValueError, match="at least one neighbour"):
        knn_predict(bank[:1], bank[:1], labels[:1], 3, 5, 0.07, own=one)


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


def write_images(folder, classes, per_class, seed=0, contrast=68):
    """Noise about each class's own colour, which any features tell apart unless ``contrast`` is small."""
    rng = np.random.default_rng(seed)
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        colour = np.random.default_rng(c).integers(128 - contrast, 128 + contrast, 3)
        for i in range(per_class):
            pixels = (colour + rng.integers(-60, 60, (40, 50, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")
    return folder


def config(train="", test="", **keys):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    small = {"KNN.TRAIN": str(train), "KNN.TEST": str(test), "KNN.K": 3, "DATALOADER.NUM_WORKERS": 0,
             "INPUT.CROP_SIZE": 28}  # fmt: skip
    cfg.merge_from_list([part for pair in {**small, **keys}.items() for part in pair])
    return cfg


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    return write_images(root / "train", 6, 4), write_images(root / "test", 6, 2, seed=1)


def test_features_are_the_pooled_stages_of_the_central_crop(folders, encoder):
    paths = list_labelled(folders[0]).paths[:3]
    features, readable = pooled_features(encoder, paths, config())
    assert readable.tolist() == [0, 1, 2] and features["res3"].dtype == torch.float32
    assert not features["res3"].requires_grad
    assert encoder.shown[0].is_contiguous(memory_format=torch.channels_last)
    encoder.eval()
    cfg = get_cfg()
    for i, path in enumerate(paths):
        image = torch.from_numpy(central_crop(np.asarray(Image.open(path)), 28).copy()).double()
        image = (image - torch.tensor(cfg.MODEL.PIXEL_MEAN)) / torch.tensor(cfg.MODEL.PIXEL_STD)
        for name, h in encoder(image.float().permute(2, 0, 1)[None]).items():
            pooled = h[0].flatten(1).mean(1)
            torch.testing.assert_close(features[name][i], (pooled / pooled.norm()).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(400, 300), (301, 500), (100, 100), (20, 33)])
def test_central_crop_is_torchvisions(height, width):
    from torchvision.transforms import v2

    y, x = np.mgrid[:height, :width]
    waves = 9 * y / height, 9 * x / width, (x + y) / 60
    image = np.stack([128 + 100 * np.sin(wave) for wave in waves], 2).astype(np.uint8)
    expected = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(56)])(torch.from_numpy(image).permute(2, 0, 1))
    difference = np.abs(central_crop(image, 56).astype(int) - expected.permute(1, 2, 0).numpy())
    assert difference.mean() < 3  # of 256 levels: torchvision places its crop at whole pixels of the resized image


def test_central_crop_is_antialiased():
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)  # 64 pixels to one: std / 8
    assert central_crop(noise, 56).std() == pytest.approx(noise.std() / 8, rel=0.05)


@pytest.mark.parametrize("size", [1, 7, 32, 96, 160, 224])
@pytest.mark.parametrize("shape", [(50, 70, 3), (60000, 1, 3)])
def test_central_crop_has_any_size(shape, size):
    assert central_crop(np.zeros(shape, np.uint8), size).shape == (size, size, 3)


def test_accuracies_are_those_of_a_loop(folders, encoder):
    cfg = config(*folders)
    results = knn_accuracies(encoder, cfg)
    train, test = labelled_splits(cfg.KNN)
    for stage in ("res2", "res3"):
        (bank, _), (queries, _) = (pooled_features(encoder, split.paths, cfg) for split in (train, test))
        top1 = top5 = 0
        for query, truth in zip(queries[stage], test.labels, strict=True):
            scores = by_hand(query, bank[stage], train.labels, 6, 3, 0.07)
            order = sorted(range(6), key=scores.__getitem__, reverse=True)
            top1 += order[0] == truth
            top5 += truth in order[:5] and scores[truth] > 0
        assert results["knn"][f"{stage}-top1"] == pytest.approx(100 * top1 / len(test.labels))
        assert results["knn"][f"{stage}-top5"] == pytest.approx(100 * top5 / len(test.labels))
    assert results["knn"]["res2-top1"] > 50  # colours are easy
    assert all(isinstance(value, float) for value in flatten_results_dict(results).values())
    assert "knn/res3-top1" in flatten_results_dict(results)


def test_neighbours_and_temperature_weigh_the_votes():
    """The nearest neighbour is of another class than the two next ones."""
    bank = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.5], [0.9, -0.5]]))
    for k, temperature, winner in [(1, 0.07, 0), (3, 1e-3, 0), (3, 10.0, 1), (2, 10.0, 0)]:
        assert knn_predict(bank[:1], bank, torch.tensor([0, 1, 1]), 2, k, temperature)[0, 0] == winner


@pytest.mark.parametrize(
    ("key", "value"),
    [("KNN.K", 1), ("KNN.TEMPERATURE", 1e-4), ("INPUT.CROP_SIZE", 12), ("MODEL.PIXEL_MEAN", [99.0, 116.0, 103.0]),
     ("MODEL.PIXEL_STD", [9.0, 99.0, 400.0])],
)  # fmt: skip
def test_key_changes_the_result(tmp_path, encoder, key, value):
    write_images(tmp_path, 8, 5, contrast=4)  # hard to tell apart
    base = {"KNN.K": 10}
    assert knn_accuracies(encoder, config(tmp_path, **base)) != knn_accuracies(
        encoder, config(tmp_path, **{**base, key: value})
    )


def test_leave_one_out(tmp_path, encoder):
    """Every image has a twin in another class: it would be right only if it were its own neighbour."""
    write_images(tmp_path, 2, 2)
    for i in range(2):
        (tmp_path / "class1" / f"{i}.png").write_bytes((tmp_path / "class0" / f"{i}.png").read_bytes())
    results = knn_accuracies(encoder, config(tmp_path, **{"KNN.K": 1}))["knn"]
    assert results == {"res2-top1": 0.0, "res3-top1": 0.0}  # two classes: no top-5
    assert knn_accuracies(encoder, config(tmp_path, tmp_path, **{"KNN.K": 1}))["knn"]["res2-top1"] >= 50


def test_encoder_and_random_generators_stay_as_they_are(folders, encoder):
    encoder.train()
    encoder.res3[1].eval()  # a frozen BN within a model that trains
    before = copy.deepcopy(encoder.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    results = [knn_accuracies(encoder, config(*folders, **{"DATALOADER.NUM_WORKERS": n})) for n in (0, 0, 2)]
    assert results[0] == results[1] == results[2]  # BN and dropout in eval mode, whatever the workers
    assert [module.training for module in encoder.res3] == [True, False, True, True] and encoder.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_mode_is_restored_after_a_failure(folders, encoder):
    encoder.res3 = None
    with pytest.raises(TypeError):
        knn_accuracies(encoder, config(*folders))
    assert encoder.training and encoder.res2.training


def test_unreadable_images_are_left_out_and_named(tmp_path, encoder, caplog, monkeypatch):
    whole, torn = write_images(tmp_path / "whole", 3, 3), write_images(tmp_path / "torn", 3, 3)
    for name in ("0.png", "2.png"):
        (whole / "class0" / name).unlink()
        (torn / "class0" / name).write_bytes(b"no image")
    monkeypatch.setattr(readout, "BATCH_SIZE", 1)  # a batch without any readable image
    with caplog.at_level(logging.WARNING, "pretrain.readout"):
        assert knn_accuracies(encoder, config(torn)) == knn_accuracies(encoder, config(whole))
        assert knn_accuracies(encoder, config(whole, torn)) == knn_accuracies(encoder, config(whole, whole))
    assert caplog.messages[:3] == [
        f"unreadable image left out: {torn / 'class0' / '0.png'}",
        f"unreadable image left out: {torn / 'class0' / '2.png'}",
        "2 of 9 labelled images are unreadable and left out",
    ]
    for path in torn.glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(OSError, match="none of the 9 labelled images is readable, the first: .*class0/0.png"):
        knn_accuracies(encoder, config(torn))


def test_features_that_are_not_finite_have_no_accuracy(folders, encoder):
    encoder.res3[0].weight.data.fill_(math.nan)
    results = knn_accuracies(encoder, config(*folders))["knn"]
    assert results["res2-top1"] > 0 and math.isnan(results["res3-top1"]) and math.isnan(results["res3-top5"])


def test_class_folders(tmp_path):
    train, test = write_images(tmp_path / "train", 3, 2), write_images(tmp_path / "test", 3, 1)
    (train / "notes.txt").write_text("no class")
    (test / "class0" / "0.png").unlink()
    (test / "class0").rmdir()  # TEST may have fewer classes: labels stay those of TRAIN
    first, second = labelled_splits(config(train, test).KNN)
    assert first.labels == [0, 0, 1, 1, 2, 2] and first.class_names == ["class0", "class1", "class2"]
    assert first.paths[2] == str(train / "class1" / "0.png")
    assert second.labels == [1, 2] and labelled_splits(config(train).KNN)[1] is None


def test_errors_say_what_is_wrong(tmp_path):
    train = write_images(tmp_path / "train", 2, 1)
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "0.png")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    for train_, test, error, message in [
        (tmp_path / "nowhere", "", FileNotFoundError, "nowhere: no such folder of labelled images"),
        (tmp_path / "flat", "", FileNotFoundError, "flat: no sub-folders; labelled images lie in one sub-folder for"),
        (tmp_path / "hollow", "", FileNotFoundError, "hollow/cat: no images"),
        (write_images(tmp_path / "one", 1, 2), "", ValueError, "one: one class only, class0"),
        (train, tmp_path / "nowhere", FileNotFoundError, "no such folder"),
        (train, write_images(tmp_path / "more", 4, 1), ValueError,
         "more: 2 classes that the training folder does not have: class2, class3$"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message) as caught:
            labelled_splits(config(train_, test).KNN)
        assert "\n" not in str(caught.value)


ONE_RANK = """
import sys, torch
from pretrain import readout
from pretrain.config import get_cfg
from pretrain.encoders import build_encoder
rank, folder, train = int(sys.argv[1]), sys.argv[2], sys.argv[3]
readout.BATCH_SIZE = 4
torch.set_num_threads(1)
torch.manual_seed(0)
encoder = build_encoder("resnet18")
sum(h.mean() for h in encoder(torch.randn(2, 3, 32, 32)).values()).backward()  # workers start after autograd has run
cfg = get_cfg()
cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.CROP_SIZE, cfg.KNN.TRAIN = "cpu", 1, 32, train
paths = readout.list_labelled(train).paths
measure = lambda: (readout.pooled_features(encoder, paths, cfg), readout.knn_accuracies(encoder, cfg))
alone = measure() if rank == 0 else None
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.save((alone, measure()), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path, request):
    train = write_images(tmp_path / "train", 3, 9)  # 7 batches: the second process has one less
    (train / "class2" / "4.png").write_bytes(b"")
    root = request.config.rootpath
    commands = [[sys.executable, "-c", ONE_RANK, str(rank), str(tmp_path), str(train)] for rank in (0, 1)]
    env = {**os.environ, "PYTHONPATH": str(root)}
    processes = [subprocess.Popen(c, cwd=root, env=env, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    ((one, readable), accuracies), ((two, readable2), accuracies2) = torch.load(tmp_path / "0.pt")
    assert readable.tolist() == readable2.tolist() == [i for i in range(27) if i != 22]
    assert list(two) == ["res2", "res3", "res4", "res5"] and all(torch.equal(one[name], two[name]) for name in one)
    assert accuracies == accuracies2 and len(accuracies["knn"]) == 4
    (nothing, none), empty = torch.load(tmp_path / "1.pt")[1]
    assert nothing == empty == {} and len(none) == 0

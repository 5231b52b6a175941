"""kNN on pooled features: against loops by hand and lightly; what it must not touch; two processes against one."""

import copy
import logging
import math
import random
import shutil

import numpy as np
import pytest
import torch
from detectron2.evaluation.testing import flatten_results_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrain.readout import features, knn
from pretrain.readout.features import PooledEncoder, pooled_features
from pretrain.readout.knn import knn_accuracies, knn_predict
from pretrain.readout.labelled import labelled_splits


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
    peer = pytest.importorskip("lightly.utils.benchmarking.knn", reason="lightly is not installed")
    bank, queries = unit_vectors(500, 16, 0), unit_vectors(200, 16, 1)
    labels = torch.randint(10, (500,), generator=torch.Generator().manual_seed(2))
    for k, temperature in [(1, 0.1), (20, 0.07), (200, 0.1), (500, 0.5)]:
        expected = peer.knn_predict(queries, bank.T, labels, 10, k, temperature)[:, 0]
        assert torch.equal(knn_predict(queries, bank, labels, 10, k, temperature)[:, 0], expected)


def test_chunks_change_nothing(monkeypatch):
    bank, labels, own = unit_vectors(50, 8, 0), torch.arange(50) % 7, torch.arange(50)
    whole = knn_predict(bank, bank, labels, 7, 9, 0.07, own)
    monkeypatch.setattr(knn, "SIMILARITIES", 150)  # three queries at a time
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


def test_accuracies_are_those_of_a_loop(config, folders, encoder):
    cfg = config(*folders)
    results = knn_accuracies(encoder, cfg)
    train, test = labelled_splits(cfg.KNN)
    pooled = PooledEncoder(encoder, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    for stage in ("res2", "res3"):
        bank, queries = (
            nn.functional.normalize(pooled_features(pooled, split.paths, cfg)[0][stage]) for split in (train, test)
        )
        top1 = top5 = 0
        for query, truth in zip(queries, test.labels, strict=True):
            scores = by_hand(query, bank, train.labels, 6, 3, 0.07)
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
def test_key_changes_the_result(config, write_images, tmp_path, encoder, key, value):
    write_images(tmp_path, 8, 5, contrast=4)  # hard to tell apart
    base = {"KNN.K": 10}
    assert knn_accuracies(encoder, config(tmp_path, **base)) != knn_accuracies(
        encoder, config(tmp_path, **{**base, key: value})
    )


def test_leave_one_out(config, write_images, tmp_path, encoder):
    """Every image has a twin in another class: it would be right only if it were its own neighbour."""
    train = write_images(tmp_path / "train", 2, 2)
    for i in range(2):
        (train / "class1" / f"{i}.png").write_bytes((train / "class0" / f"{i}.png").read_bytes())
    test = shutil.copytree(train, tmp_path / "test")
    results = knn_accuracies(encoder, config(train, **{"KNN.K": 1}))["knn"]
    assert results == {"res2-top1": 0.0, "res3-top1": 0.0}  # two classes: no top-5
    assert knn_accuracies(encoder, config(train, test, **{"KNN.K": 1}))["knn"]["res2-top1"] >= 50


def test_encoder_and_random_generators_stay_as_they_are(config, folders, encoder):
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


def test_mode_is_restored_after_a_failure(config, folders, encoder):
    encoder.res3 = None
    with pytest.raises(TypeError):
        knn_accuracies(encoder, config(*folders))
    assert encoder.training and encoder.res2.training


def test_unreadable_images_are_left_out_and_named(config, write_images, tmp_path, encoder, caplog, monkeypatch):
    whole, torn = write_images(tmp_path / "whole", 3, 3), write_images(tmp_path / "torn", 3, 3)
    for name in ("0.png", "2.png"):
        (whole / "class0" / name).unlink()
        (torn / "class0" / name).write_bytes(b"no image")
    copy_of_whole = shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.setattr(features, "BATCH_SIZE", 1)  # a batch without any readable image
    with caplog.at_level(logging.WARNING, "pretrain.readout"):
        assert knn_accuracies(encoder, config(torn)) == knn_accuracies(encoder, config(whole))
        assert knn_accuracies(encoder, config(whole, torn)) == knn_accuracies(encoder, config(whole, copy_of_whole))
    assert caplog.messages[:3] == [
        f"unreadable image left out: {torn / 'class0' / '0.png'}",
        f"unreadable image left out: {torn / 'class0' / '2.png'}",
        "2 of 9 labelled images are unreadable and left out",
    ]
    for path in torn.glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(OSError, match="none of the 9 labelled images is readable, the first: .*class0/0.png"):
        knn_accuracies(encoder, config(torn))


def test_features_that_are_not_finite_have_no_accuracy(config, folders, encoder):
    encoder.res3[0].weight.data.fill_(math.nan)
    results = knn_accuracies(encoder, config(*folders))["knn"]
    assert results["res2-top1"] > 0 and math.isnan(results["res3-top1"]) and math.isnan(results["res3-top5"])


ONE_RANK = """
import sys, torch
from pretrain.config import get_cfg
from pretrain.encoders import build_encoder
from pretrain.readout import features, knn, labelled
rank, folder, train = int(sys.argv[1]), sys.argv[2], sys.argv[3]
features.BATCH_SIZE = 4
torch.set_num_threads(1)
torch.manual_seed(0)
encoder = build_encoder("resnet18x0.25")
sum(h.mean() for h in encoder(torch.randn(2, 3, 32, 32)).values()).backward()  # workers start after autograd has run
cfg = get_cfg()
cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.CROP_SIZE, cfg.KNN.TRAIN = "cpu", 1, 32, train
paths = labelled.list_labelled(train).paths
pooled = features.PooledEncoder(encoder, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
measure = lambda: (features.pooled_features(pooled, paths, cfg), knn.knn_accuracies(encoder, cfg))
alone = measure() if rank == 0 else None
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.save((alone, measure()), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one(run_two_ranks, write_images, tmp_path):
    train = write_images(tmp_path / "train", 3, 9)  # 7 batches: the second process has one less
    (train / "class2" / "4.png").write_bytes(b"")
    run_two_ranks(ONE_RANK, tmp_path, train)
    ((one, readable), accuracies), ((two, readable2), accuracies2) = torch.load(tmp_path / "0.pt")
    assert readable.tolist() == readable2.tolist() == [i for i in range(27) if i != 22]
    assert list(two) == ["res2", "res3", "res4", "res5"] and all(torch.equal(one[name], two[name]) for name in one)
    assert accuracies == accuracies2 and len(accuracies["knn"]) == 4
    (nothing, none), empty = torch.load(tmp_path / "1.pt")[1]
    assert nothing == empty == {} and len(none) == 0

"""The classifiers: each as if trained alone by a published loop; their first weights, optimisers and accuracies."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.readout import linear
from pretrain.readout.features import pooled_features
from pretrain.readout.labelled import list_labelled
from pretrain.readout.linear import LinearClassifiers, build_optimizer, build_scheduler
from pretrain.readout.probe import LinearProbe

WEIGHTS = {"path": "weights.pth", "sha256": "0" * 64}


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train_alone(features, labels, head, lr, cfg):
    """As main_lincls.py of MoCo trains one classifier, but with whole batches only: features (N, C), labels (N,)."""
    solver = cfg.SOLVER
    optimizer = torch.optim.SGD(head.parameters(), lr, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY,
                                nesterov=solver.NESTEROV)  # fmt: skip
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(s) for s in solver.STEPS], solver.GAMMA)
    for epoch in range(int(solver.EPOCHS)):
        order = np.random.default_rng([cfg.SEED, epoch]).permutation(len(labels))
        for first in range(0, len(labels) - solver.IMS_PER_BATCH + 1, solver.IMS_PER_BATCH):
            rows = order[first : first + solver.IMS_PER_BATCH]
            loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"SOLVER.MOMENTUM": 0.9, "SOLVER.WEIGHT_DECAY": 0.01, "SOLVER.STEPS": [1.0, 3.0], "SOLVER.GAMMA": 0.5},
        {"FEATURES.STANDARDIZE": True, "SOLVER.MOMENTUM": 0.5, "SOLVER.NESTEROV": True, "SEED": 3},
    ],
)
def test_each_is_what_it_is_alone(folders, pooled, probe_config, tmp_path, float64, keys):
    cfg = probe_config(folders, tmp_path, **{"SOLVER.BASE_LR": [960.0, 96.0, 9.6], "SOLVER.IMS_PER_BATCH": 7, **keys})
    train = list_labelled(folders[0])  # 24 images: three batches of 7, and 3 images that an epoch leaves out
    features, labels = pooled_features(pooled, train.paths, cfg)[0], torch.tensor(train.labels)
    probe = LinearProbe(cfg, pooled, WEIGHTS)
    alone = copy.deepcopy(probe.classifiers.heads)
    probe.train()
    for stage, heads in probe.classifiers.heads.items():
        x = features[stage].double()
        if cfg.FEATURES.STANDARDIZE:
            x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-6).sqrt()
        for trained, head, lr in zip(heads, alone[stage], cfg.SOLVER.BASE_LR, strict=True):
            before = head.weight.detach().clone()
            train_alone(x, labels, head, lr * 7 / 256, cfg)
            assert (head.weight - before).abs().max() > 1e-3
            torch.testing.assert_close(trained.weight, head.weight, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(trained.bias, head.bias, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cached", [True, False])
def test_a_sweep_is_its_single_runs(folders, pooled, probe_config, tmp_path, cached):
    keys = {"FEATURES.CACHED": cached, "SOLVER.MOMENTUM": 0.9}
    sweep = LinearProbe(probe_config(folders, tmp_path / "all", **keys), pooled, WEIGHTS)
    found = sweep.train().linear
    for i, (rate, name) in enumerate([(10.0, "10"), (1.0, "1")]):
        cfg = probe_config(folders, tmp_path / name, **{**keys, "SOLVER.BASE_LR": [rate]})
        pooled.stages = ["res3"]
        single = LinearProbe(cfg, pooled, WEIGHTS)
        assert single.train().linear["res3"].top1 == found["res3"].sweep[name]["top1"]
        head, same = sweep.classifiers.heads["res3"][i], single.classifiers.heads["res3"][0]
        torch.testing.assert_close(head.weight, same.weight, rtol=1e-5, atol=1e-6)
        pooled.stages = []


def test_first_weights():
    heads = LinearClassifiers({"res2": 300, "res5": 400}, 2, 50, seed=0).heads
    for name in heads:
        first, second = heads[name]
        assert torch.equal(first.weight, second.weight) and first.weight is not second.weight
        assert first.weight.std().item() == pytest.approx(0.01, rel=0.02) and abs(first.weight.mean()) < 4e-4
        assert not first.bias.any()
    other = LinearClassifiers({"res5": 400}, 1, 50, seed=0).heads["res5"][0]
    assert torch.equal(other.weight, heads["res5"][1].weight)  # whatever other stages and rates there are
    assert not torch.equal(LinearClassifiers({"res5": 400}, 1, 50, seed=1).heads["res5"][0].weight, other.weight)


def solver(probe_config, **keys):
    keys = {f"SOLVER.{key}": value for key, value in keys.items()}
    return probe_config(("train", "test"), "out", **keys).SOLVER


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_adapts_weights_and_leaves_offsets_alone(probe_config, decay):
    classifiers = LinearClassifiers({"res5": 5}, 2, 3, seed=0)
    optimizer = build_optimizer(
        solver(probe_config, OPTIMIZER="LARS", WEIGHT_DECAY=decay, IMS_PER_BATCH=64), classifiers
    )
    gen = torch.Generator().manual_seed(0)
    for parameter in classifiers.parameters():
        parameter.data.normal_(generator=gen)
        parameter.grad = torch.randn(parameter.shape, generator=gen)
    before = copy.deepcopy(classifiers)  # leaves out the gradients
    optimizer.step()
    for i, lr in enumerate([2.5, 0.25]):
        head, old = classifiers.heads["res5"][i], before.heads["res5"][i]
        w, g = old.weight, head.weight.grad
        trust = 0.001 * w.norm() / (g.norm() + decay * w.norm())  # You et al. 2017 (arXiv 1708.03888), eq. 6
        torch.testing.assert_close(head.weight, w - lr * trust * (g + decay * w), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(head.bias, old.bias - lr * head.bias.grad)


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
def test_learning_rates(probe_config, schedule):
    keys = {"SCHEDULE": schedule, "EPOCHS": 6.0, "STEPS": [1.5, 4.0], "GAMMA": 0.2, "BASE_LR": [4.0, 8.0]}
    cfg, found = solver(probe_config, **keys), []
    optimizer = build_optimizer(cfg, LinearClassifiers({"res5": 5}, 2, 3, seed=0))
    scheduler = build_scheduler(cfg, optimizer, 2, 12)
    for _ in range(12):
        found.append([group["lr"] for group in optimizer.param_groups[:2]])
        optimizer.step()
        scheduler.step()
    factors = [1.0] * 3 + [0.2] * 5 + [0.04] * 4  # 8 / 256 of 4 is 1 / 8
    if schedule == "cosine":
        factors = [(1 + math.cos(math.pi * i / 12)) / 2 for i in range(12)]
    assert np.allclose(found, [[f / 8, f / 4] for f in factors], rtol=1e-12)


def test_steps_that_fall_together_are_refused(probe_config):
    cfg = solver(probe_config, STEPS=[1.0, 1.1])
    optimizer = build_optimizer(cfg, LinearClassifiers({"res5": 5}, 2, 3, seed=0))
    with pytest.raises(ValueError, match=r"SOLVER.STEPS \[1.0, 1.1\] cannot be told apart in 8 iterations, 2 an epoch"):
        build_scheduler(cfg, optimizer, 2, 8)


@pytest.mark.parametrize("classes", [3, 5, 6, 20])
def test_accuracies_by_hand(monkeypatch, classes):
    monkeypatch.setattr(linear, "ROWS", 16)
    classifiers = LinearClassifiers({"res2": 4, "res5": 8}, 2, classes, seed=0)
    gen = torch.Generator().manual_seed(0)
    features = {"res2": torch.randn(50, 4, generator=gen), "res5": torch.randn(50, 8, generator=gen)}
    labels = torch.randint(classes, (50,), generator=gen)
    for heads in classifiers.heads.values():
        heads[1].weight.data.normal_(generator=gen)
    found = classifiers.accuracies(features, labels)
    for name, heads in classifiers.heads.items():
        assert found[name].keys() == ({"top1", "top5"} if classes > 5 else {"top1"})
        for i, head in enumerate(heads):
            order = head(features[name]).argsort(1, descending=True).tolist()
            for top, k in (("top1", 1), ("top5", 5)):
                hits = [label in row[:k] for row, label in zip(order, labels.tolist(), strict=True)]
                if top in found[name]:
                    assert found[name][top][i] == pytest.approx(100 * sum(hits) / 50)
    classifiers.heads["res5"][1].bias.data[0] = math.nan
    broken = classifiers.accuracies(features, labels)
    assert broken["res2"] == found["res2"] and broken["res5"]["top1"][0] == found["res5"]["top1"][0]
    assert all(math.isnan(values[1]) for values in broken["res5"].values())

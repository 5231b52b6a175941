"""The linear readout: what its keys change, resuming, divergence, several processes, results and the picture."""

import copy
import logging
import math

import matplotlib.image
import pytest
import torch
from checkout import ROOT
from run_files import metrics

from pretrain.files.checkpoints import items_of
from pretrain.files.metrics import Metrics
from pretrain.files.results import LinearResults, LinearStage
from pretrain.readout import checkpoint, probe, results
from pretrain.readout.config import get_cfg
from pretrain.readout.curves import draw_probe
from pretrain.readout.probe import LinearProbe

WEIGHTS = {"path": "weights.pth", "sha256": "0" * 64, "source": "torchvision", "arch": "resnet18"}


def run(cfg, pooled, resume=False, weights=WEIGHTS):
    """A whole run; returns its weights as one vector, and its results."""
    trained = LinearProbe(cfg, pooled, weights, resume)
    found = trained.train()
    return torch.cat([p.detach().flatten() for p in trained.classifiers.parameters()]), found


@pytest.fixture(autouse=True)
def undrawn(monkeypatch, request):
    """Only the tests of the picture draw it: it takes longer than all else."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(probe.ProbePlot, "write", lambda self: None)


@pytest.fixture
def reference(folders, pooled, probe_config, tmp_path):
    return {
        cached: run(probe_config(folders, tmp_path / f"{cached}", **{"FEATURES.CACHED": cached}), pooled)[0]
        for cached in (True, False)
    }


CHANGES = {
    "SEED": 1,
    "DATASETS.HELD_OUT": 0.25,
    "INPUT.CROP_SIZE": 24,
    "FEATURES.CACHED": False,
    "FEATURES.STANDARDIZE": True,
    "SOLVER.OPTIMIZER": "LARS",
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.BASE_LR": [10.0, 2.0],
    "SOLVER.MOMENTUM": 0.5,
    "SOLVER.WEIGHT_DECAY": 0.1,
    "SOLVER.EPOCHS": 3.0,
    "SOLVER.SCHEDULE": "cosine",
    "SOLVER.STEPS": [3.0],
    "SOLVER.GAMMA": 0.5,
}
ELSEWHERE = {  # where each of the other keys is shown to matter
    "MODEL.WEIGHTS", "MODEL.STAGES", "MODEL.DEVICE", "DATASETS.TRAIN", "DATASETS.TEST", "OUTPUT_DIR",  # every tool test
    "KNN.K", "KNN.TEMPERATURE",  # of tools/knn.py
    "DATALOADER.NUM_WORKERS",  # test_streams.py
    "FEATURES.CACHE",  # test_features.py
    "MODEL.KEEP_FREED_MEMORY",  # tests/pretrain/processes/test_cpu.py
    "INPUT.CROP_AREA", "SOLVER.NESTEROV", "SOLVER.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD",
    "SOLVER.AMP.ENABLED",  # below, and test_features.py
}  # fmt: skip


def test_every_key_is_tested():
    assert {key for key, _ in items_of(get_cfg())} == {*CHANGES} | ELSEWHERE


def test_keys_change_what_is_learned(folders, pooled, probe_config, tmp_path, reference):
    for key, value in CHANGES.items():
        cfg = probe_config(folders, tmp_path / key, **{key: value})
        found = run(cfg, pooled)[0]
        assert found.shape == reference[True].shape and not torch.equal(found, reference[True]), key
    cfg = probe_config(folders, tmp_path / "again")
    assert torch.equal(run(cfg, pooled)[0], reference[True])
    area = {"FEATURES.CACHED": False, "INPUT.CROP_AREA": [0.5, 0.6]}
    assert not torch.equal(run(probe_config(folders, tmp_path / "area", **area), pooled)[0], reference[False])
    nesterov = [{"SOLVER.MOMENTUM": 0.5, "SOLVER.NESTEROV": on} for on in (True, False)]
    a, b = (run(probe_config(folders, tmp_path / str(i), **keys), pooled)[0] for i, keys in enumerate(nesterov))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("cached", [True, False])
def test_the_encoder_is_not_touched(folders, pooled, probe_config, tmp_path, cached):
    pooled.encoder.train()
    before = copy.deepcopy(pooled.encoder.state_dict())
    run(probe_config(folders, tmp_path, **{"FEATURES.CACHED": cached, "FEATURES.STANDARDIZE": True}), pooled)
    assert all(torch.equal(value, before[name]) for name, value in pooled.encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in pooled.encoder.parameters())
    assert not pooled.encoder.training
    if not cached:  # each training image goes through once for all classifiers, each test image at each test
        assert sum(map(len, pooled.encoder.shown)) == 1 + 4 * 3 * 8 + 2 * 12
    else:
        assert sum(map(len, pooled.encoder.shown)) == 1 + 24 + 12


def test_standardized_online_is_bn_without_affine(folders, pooled, probe_config, tmp_path):
    keys = {"FEATURES.CACHED": False, "FEATURES.STANDARDIZE": True, "SOLVER.BASE_LR": [1.0], "SOLVER.EPOCHS": 3.0}
    trained = LinearProbe(probe_config(folders, tmp_path, **keys), pooled, WEIGHTS)
    mine = {name: copy.deepcopy(heads[0]) for name, heads in trained.classifiers.heads.items()}
    for name, head in mine.items():
        bn = torch.nn.BatchNorm1d(head.in_features, affine=False, eps=1e-6)
        model, batches = torch.nn.Sequential(bn, head), trained.stream.batches(0)
        optimizer = torch.optim.SGD(model.parameters(), 8 / 256)
        for i in range(9):
            features, labels = next(batches)
            optimizer.param_groups[0]["lr"] = 8 / 256 * (0.1 if i >= 6 else 1)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(features[name]), labels).backward()
            optimizer.step()
        mine[name] = model.eval()
    trained.train()
    for name, model in mine.items():
        torch.testing.assert_close(trained.classifiers.heads[name][0].weight, model[1].weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(trained.classifiers.norms[name].running_var, model[0].running_var)
    features, labels = trained.stream.test_features()["test"]
    hits = (mine["res3"](features["res3"]).argmax(1) == labels).double().mean().item()
    assert trained.tops["test"]["res3"]["top1"] == [pytest.approx(100 * hits)]


@pytest.mark.parametrize("cached", [True, False])
def test_resumed_runs_end_with_the_same_bits(folders, pooled, probe_config, tmp_path, monkeypatch, cached):
    keys = {"FEATURES.CACHED": cached, "SOLVER.MOMENTUM": 0.9, "FEATURES.STANDARDIZE": True,
            "SOLVER.CHECKPOINT_PERIOD": 2, "DATASETS.HELD_OUT": 0.25, "SOLVER.IMS_PER_BATCH": 6}  # fmt: skip
    whole, expected = run(probe_config(folders, tmp_path / "whole", **keys), pooled)
    cfg, step = probe_config(folders, tmp_path / "broken", **keys), LinearProbe.run_step

    def broken(self):
        if self.iter == 7:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(LinearProbe, "run_step", broken)
    with pytest.raises(KeyboardInterrupt):
        run(cfg, pooled)
    assert {p.name for p in (tmp_path / "broken").glob("*.pth")} - {"features.pth"} == {"model_0000005.pth"}
    monkeypatch.setattr(LinearProbe, "run_step", step)
    resumed, found = run(cfg, pooled, resume=True)
    assert torch.equal(resumed, whole) and found.linear == expected.linear
    a, b = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("whole", "broken"))
    assert a["format"] == "loco-det linear readout" and a["iteration"] == b["iteration"] == 11
    for part in ("model", "optimizer", "scheduler"):
        assert str(a[part]) == str(b[part])
    again, once_more = run(cfg, pooled, resume=True)  # a finished run is tested again
    assert torch.equal(again, whole) and once_more.linear == found.linear
    assert once_more.seconds > b["stopwatch"]["seconds"] - 0.1  # rounded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SOLVER.GAMMA": 0.5}, "is a run with other SOLVER.GAMMA: resume it with its own config.yaml"),
        ({"DATASETS.HELD_OUT": 0.3}, "with other DATASETS.HELD_OUT, number of held_out, number of train: "),
        ("weights", "with other sha256 of the weights: "),
    ],
)
def test_another_run_is_not_resumed(folders, pooled, probe_config, tmp_path, change, message):
    run(probe_config(folders, tmp_path), pooled)
    weights = {**WEIGHTS, "sha256": "1" * 64} if change == "weights" else WEIGHTS
    cfg = probe_config(folders, tmp_path, **({} if change == "weights" else change))
    with pytest.raises(ValueError, match=message):
        run(cfg, pooled, True, weights)
    free = {"SOLVER.LOG_PERIOD": 5, "SOLVER.EVAL_PERIOD": 1.0, "KNN.K": [3], "MODEL.WEIGHTS": "elsewhere.pth"}
    run(probe_config(folders, tmp_path, **free), pooled, True)


def test_there_must_be_something_to_resume(folders, pooled, probe_config, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume; leave out --resume"):
        run(probe_config(folders, tmp_path), pooled, resume=True)


def test_a_diverged_classifier_does_not_stop_the_others(folders, pooled, probe_config, tmp_path, caplog):
    keys = {"SOLVER.EPOCHS": 4.0, "SOLVER.WEIGHT_DECAY": 0.5}
    cfg = probe_config(folders, tmp_path / "two", **{**keys, "SOLVER.BASE_LR": [1e20, 1.0]})
    with caplog.at_level(logging.WARNING, "pretrain.readout"):
        weights, found = run(cfg, pooled)
    alone = run(probe_config(folders, tmp_path / "one", **{**keys, "SOLVER.BASE_LR": [1.0]}), pooled)[1]
    for name in ("res2", "res3"):
        row = found.linear[name]
        assert row.lr == 1.0 and row.top1 == alone.linear[name].top1 == row.sweep["1"]["top1"]
        assert row.sweep["1e+20"] == {"top1": None, "held_out_top1": None}
        assert sum(f"{name}-lr1e+20: the loss is not finite from iteration" in text for text in caplog.messages) == 1
    assert LinearResults.read(tmp_path / "two/results.json") == found
    cfg = probe_config(folders, tmp_path / "none", **{**keys, "SOLVER.BASE_LR": [1e20, 2e20]})
    with pytest.raises(FloatingPointError, match="all 4 classifiers have diverged at iteration .* SOLVER.BASE_LR"):
        run(cfg, pooled)
    assert not (tmp_path / "none/results.json").exists()


def test_few_held_out_images_that_choose_are_named(folders, pooled, probe_config, tmp_path, caplog):
    for rates, said in (([10.0, 1.0], 1), ([1.0], 0)):
        caplog.clear()
        keys = {"DATASETS.HELD_OUT": 0.25, "SOLVER.IMS_PER_BATCH": 6, "SOLVER.BASE_LR": rates}
        run(probe_config(folders, tmp_path, **keys), pooled)
        assert sum("is chosen on 6 held-out images, of which one is 16.7 points" in m for m in caplog.messages) == said


@pytest.mark.parametrize("cached", [True, False])
def test_the_estimate_counts_tests_where_they_need_the_encoder(folders, pooled, probe_config, tmp_path, cached):
    keys = {"FEATURES.CACHED": cached, "DATASETS.HELD_OUT": 0.25, "SOLVER.IMS_PER_BATCH": 6}
    trained = LinearProbe(probe_config(folders, tmp_path, **keys), pooled, WEIGHTS)
    (estimate,) = (hook for hook in trained._hooks if isinstance(hook, probe.TimeEstimate))
    assert estimate.extras == ([] if cached else [("tests", 2 * (12 + 6) / 6)])


@pytest.mark.parametrize(("cached", "size", "said"), [(False, 2000, 1), (True, 2000, 0), (False, 28, 0)])
def test_a_recipe_for_gpus_is_named(pooled, probe_config, tmp_path, caplog, monkeypatch, cached, size, said):
    monkeypatch.setattr(pooled, "forward", lambda images: {"res2": torch.zeros(1, 4)})
    cfg = probe_config(("/nowhere", "/no"), tmp_path, **{"FEATURES.CACHED": cached, "INPUT.CROP_SIZE": size})
    with caplog.at_level(logging.WARNING, "pretrain.readout"), pytest.raises(FileNotFoundError, match="/nowhere"):
        LinearProbe(cfg, pooled, WEIGHTS)
    assert sum("--config-file configs/readout/cached.yaml" in text for text in caplog.messages) == said


def test_a_stage_whose_classifiers_all_diverge(folders, pooled, probe_config, tmp_path):
    pooled.encoder.res3[0].weight.data.fill_(math.nan)
    found = run(probe_config(folders, tmp_path), pooled)[1]
    nothing = {"top1": None, "held_out_top1": None}
    assert found.linear["res3"] == LinearStage(sweep={"10": nothing, "1": nothing})
    written = LinearResults.read(tmp_path / "results.json")
    assert written == found and written.to_json()["linear"]["res3"]["top5"] is None  # of 6 classes
    assert found.linear["res2"].top1 > 0
    line = next(line for line in results.table(found).splitlines() if line.startswith("| res3"))
    assert line.split() == "| res3 | – | – | all diverged |".split()


def test_results_of_a_run(folders, pooled, probe_config, tmp_path, monkeypatch):
    monkeypatch.setattr(probe.LinearClassifiers, "accuracies", lambda self, features, labels: {
        "res2": {"top1": [1.0, 2.0, 3.0], "top5": [4.0, 5.0, 6.0]} if len(labels) == 12 else {"top1": [9.0, 8.0, 7.0]},
        "res3": {"top1": [1.0, 2.0, 3.0], "top5": [4.0, 5.0, 6.0]} if len(labels) == 12 else {"top1": [7.0, 8.0, 8.0]},
    })  # fmt: skip
    monkeypatch.setattr(probe.Stopwatch, "state_dict", lambda self: {"seconds": 12.34})
    keys = {"SOLVER.BASE_LR": [10.0, 1.0, 0.1], "DATASETS.HELD_OUT": 0.25}
    found = run(probe_config(folders, tmp_path, **keys), pooled)[1]
    assert found.weights == WEIGHTS and found.images == {"train": 18, "held_out": 6, "test": 12, "classes": 6}
    sweep = {"10": {"top1": 1.0, "held_out_top1": 9.0}, "1": {"top1": 2.0, "held_out_top1": 8.0},
             "0.1": {"top1": 3.0, "held_out_top1": 7.0}}  # fmt: skip
    assert found.linear["res2"] == LinearStage(1.0, 4.0, 10.0, 9.0, sweep)
    assert found.linear["res3"].lr == 1.0 and found.linear["res3"].top1 == 2.0  # the first of equal ones
    assert found.protocol["chosen_on"] == "held-out" and found.seconds == 12.3
    assert results.at_the_edge(found) == ["res2"]
    head, _, *rows, note = results.table(found).splitlines()
    assert [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)] == [
        ["stage", "top-1", "top-5", "learning rate"],
        ["res2", "1.00", "4.00", "10"],
        ["res3", "2.00", "5.00", "1"],
    ]
    assert note == "(each stage's learning rate was chosen on the held-out training images)"
    found = run(probe_config(folders, tmp_path / "test", **{"SOLVER.BASE_LR": [10.0, 1.0, 0.1]}), pooled)[1]
    assert found.protocol["chosen_on"] == "test" and found.linear["res2"].lr == 0.1
    assert found.linear["res2"].held_out_top1 is None
    assert "(each stage's learning rate was chosen on the test images themselves)" in results.table(found)


def test_metrics_and_picture(folders, pooled, probe_config, tmp_path):
    keys = {"DATASETS.HELD_OUT": 0.25, "SOLVER.EVAL_PERIOD": 1.0, "SOLVER.IMS_PER_BATCH": 6}
    found = run(probe_config(folders, tmp_path, **keys), pooled)[1]
    rows = metrics(tmp_path)
    assert [row["iteration"] for row in rows if "lr" in row] == list(range(12))
    assert rows[0]["train/res2-lr10"] == pytest.approx(math.log(6), rel=0.1)
    assert rows[0]["loss_res2"] == min(rows[0]["train/res2-lr10"], rows[0]["train/res2-lr1"])
    tested = [row for row in rows if "test/res3-lr1-top1" in row]
    assert [row["iteration"] for row in tested] == [2, 5, 8, 11] and "held_out/res3-lr10-top5" in tested[0]
    assert tested[-1]["test/res3-lr1-top1"] == pytest.approx(found.linear["res3"].sweep["1"]["top1"])
    assert list(tmp_path.glob("events.out.tfevents*"))
    assert matplotlib.image.imread(tmp_path / "probe.png").shape[0] > 900  # three panels
    single = run(probe_config(folders, tmp_path / "one", **{**keys, "SOLVER.BASE_LR": [1.0]}), pooled)
    assert single[1].protocol["chosen_on"] is None
    assert 600 < matplotlib.image.imread(tmp_path / "one/probe.png").shape[0] < 900  # two


@pytest.mark.parametrize("cached", [True, False])
def test_every_evaluation_is_kept_the_last_one_at_the_last_step(folders, pooled, probe_config, tmp_path, cached):
    keys = {"FEATURES.CACHED": cached, "SOLVER.EVAL_PERIOD": 1.5, "SOLVER.LOG_PERIOD": 100, "SOLVER.BASE_LR": [1.0]}
    found = run(probe_config(folders, tmp_path, **keys), pooled)[1]
    curve = Metrics.read(tmp_path / "metrics.json").matching(r"test/(res3-lr1-top1)")["res3-lr1-top1"]
    assert curve[0].tolist() == [4, 8, 12]  # of 12 iterations
    assert curve[1][-1] == pytest.approx(found.linear["res3"].top1)


def test_nothing_to_draw(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "lr": 1.0, "train/res2-lr1": 2.0}\n')
    assert not draw_probe(str(tmp_path / "metrics.json"), str(tmp_path / "probe.png"), [1.0])
    assert not (tmp_path / "probe.png").exists()


def test_what_may_change_is_a_key():
    assert {key for key, _ in items_of(get_cfg())} >= checkpoint.FREE


ONE_RANK = """
import sys, torch
sys.path.insert(0, sys.argv[4])
import conftest
from pathlib import Path
from pretrain.readout.features import PooledEncoder
from pretrain.readout.probe import LinearProbe, ProbePlot
ProbePlot.write = lambda self: None
rank, folder, cached = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True"
torch.set_num_threads(1)
torch.manual_seed(0)
pooled = PooledEncoder(conftest.Encoder(), [123.675, 116.280, 103.530], [58.395, 57.120, 57.375])
keys = {"FEATURES.CACHED": cached, "FEATURES.STANDARDIZE": True, "SOLVER.MOMENTUM": 0.9, "DATASETS.HELD_OUT": 0.25,
        "SOLVER.IMS_PER_BATCH": 6}
def run(out):
    cfg = conftest._probe_config((folder / "train", folder / "test"), out, **keys)
    probe = LinearProbe(cfg, pooled, {"path": "weights.pth", "sha256": "0"})
    results = probe.train()
    return results and results.to_json(), probe.classifiers.state_dict()
alone = run(folder / "alone") if rank == 0 else None
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.save((alone, run(folder / "both")), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("cached", [True, False])
def test_two_processes_equal_one(run_two_ranks, write_images, tmp_path, cached):
    for name in ("train", "test"):
        write_images(tmp_path / name, 6, 4)
    run_two_ranks(ONE_RANK, tmp_path, cached, ROOT / "tests/pretrain/readout")
    (one, expected), (two, found) = torch.load(tmp_path / "0.pt", weights_only=True)
    nothing, same = torch.load(tmp_path / "1.pt", weights_only=True)[1]
    assert nothing is None and two["protocol"].pop("processes") == 2 and one["protocol"].pop("processes") == 1
    for name, value in found.items():
        assert torch.equal(value, same[name]), name
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    assert two["linear"] == one["linear"] and two["protocol"] == one["protocol"]

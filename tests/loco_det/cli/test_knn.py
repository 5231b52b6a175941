"""tools/knn.py: its figures against pretraining's hook, loops by hand and lightly; its cache, its keys, bad input."""

import functools
import json
import math
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
import yaml
from checkout import ROOT
from PIL import Image

import pretrain.readout.features
from loco_det.convert import add_encoder_config, load_encoder
from pretrain.files.images import read_image
from pretrain.readout.config import check, get_cfg
from pretrain.readout.labelled import central_crop, list_labelled

BLOCKWISE = [["res2"], ["res3"], ["res4"], ["res5"]]
K, TEMPERATURE = 3, 0.2
PRETRAIN = ("MODEL.ENCODER", "resnet18x0.25", "INPUT.CROP_SIZE", 32, "MODEL.DEVICE", "cpu", "MODEL.UNITS", BLOCKWISE,
            "MODEL.DECODER.CONV_BLOCKS", 0, "MODEL.DECODER.EXPANSION", 8, "MODEL.DECODER.HIDDEN_DIM", 8,
            "MODEL.DECODER.OUT_DIM", 4, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.EPOCHS", 2.0, "SOLVER.WARMUP_EPOCHS", 1.0,
            "DATALOADER.NUM_WORKERS", 0, "KNN.K", K, "KNN.TEMPERATURE", TEMPERATURE)  # fmt: skip
STAGES = ["res2", "res3", "res4", "res5"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise about a colour for each of seven classes, hard enough to tell apart: two folders."""
    root, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for c in range(7):
            (root / split / f"class{c}").mkdir(parents=True)
            colour = np.random.default_rng(c).integers(110, 146, 3)
            for i in range(count):
                pixels = (colour + rng.integers(-60, 60, (40, 50, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{c}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def pretrained(call_tool, images, tmp_path_factory):
    """``pretrained(test)``: checkpoint of a run with the kNN hook on those images, and what it found at last."""

    @functools.cache
    def run(test):
        out = tmp_path_factory.mktemp("pretrained")
        data = ("DATASETS.TRAIN", images / "train", "KNN.TRAIN", images / "train", "KNN.TEST", test, "OUTPUT_DIR", out)
        assert call_tool("pretrain", *PRETRAIN, *data) == 0
        last = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()][-1]
        return out / "model_final.pth", {key: value for key, value in last.items() if key.startswith("knn/")}

    return run


@pytest.fixture
def knn(call_tool, images, tmp_path):
    """``knn(weights, test, *keys)``: results.json of a run of the tool."""

    def run(weights, *keys, test=images / "test", out=tmp_path / "out"):
        data = ("DATASETS.TRAIN", images / "train", "DATASETS.TEST", test, "OUTPUT_DIR", out, "MODEL.DEVICE", "cpu")
        small = ("INPUT.CROP_SIZE", 32, "KNN.K", [K], "KNN.TEMPERATURE", [TEMPERATURE], "DATALOADER.NUM_WORKERS", 0)
        config = ("--config-file", ROOT / "configs/readout/knn.yaml")
        assert call_tool("knn", *config, "MODEL.WEIGHTS", weights, *data, *small, *keys) == 0
        return json.loads((out / "results.json").read_text())

    return run


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_figures_are_those_of_pretrainings_hook(leave_one_out, pretrained, knn, images):
    test = "" if leave_one_out else str(images / "test")
    weights, hook = pretrained(test)
    results = knn(weights, test=test)
    found = {f"knn/{stage}-{top}": figures[f"k{K}_t{TEMPERATURE}"][top]
             for stage, figures in results["knn"].items() for top in ("top1", "top5")}  # fmt: skip
    assert {name: value for name, value in found.items() if "expansion" not in name} == hook and len(hook) == 8
    assert len(set(hook.values())) > 3 and 20 < hook["knn/res3-top1"] < 90  # neither all nor by chance
    assert list(results["knn"]) == [*STAGES, *(f"{stage}+expansion" for stage in STAGES)]
    assert results["images"] == {"train": 42, "test": 42 if leave_one_out else 28, "classes": 7}
    assert results["protocol"] == {"crop_size": 32, "leave_one_out": leave_one_out} and results["seconds"] > 0


def reference_features(weights, labelled):
    """One image at a time: name -> (N, C) float64, L2-normalised."""
    encoder, conventions, _ = load_encoder(weights)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in conventions[1:3])
    rows = {}
    for path in labelled.paths:
        image = torch.from_numpy(central_crop(read_image(path), 32).copy()).permute(2, 0, 1)
        for name, features in encoder(((image - mean) / std)[None]).items():
            pooled = features[0].double().mean((1, 2))
            rows.setdefault(name, []).append(pooled / pooled.norm())
    return {name: torch.stack(values) for name, values in rows.items()}


def by_hand(query, bank, labels, k, temperature, own):
    """Classes in the order of their votes: Wu et al. 2018, Sec. 3.4."""
    cosines = [(float(query @ row), i) for i, row in enumerate(bank) if i != own]
    votes = {}
    for cosine, i in sorted(cosines, reverse=True)[:k]:
        votes[labels[i]] = votes.get(labels[i], 0.0) + math.exp(cosine / temperature)
    return sorted(votes, key=votes.get, reverse=True)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_figures_are_those_of_loops(leave_one_out, pretrained, knn, images):
    weights, _ = pretrained(str(images / "test"))
    neighbours, temperatures = [1, 5, 60], [0.05, 1.0]
    results = knn(weights, "KNN.K", neighbours, "KNN.TEMPERATURE", temperatures,
                  test="" if leave_one_out else images / "test")  # fmt: skip
    train = list_labelled(images / "train")
    test = train if leave_one_out else list_labelled(images / "test")
    bank, queries = reference_features(weights, train), reference_features(weights, test)
    voters = [min(k, len(train.labels) - leave_one_out) for k in neighbours]
    assert list(bank) == list(results["knn"])
    for name in bank:
        assert list(results["knn"][name]) == [f"k{k}_t{t:g}" for k in voters for t in temperatures]
        for k, t in ((k, t) for k in voters for t in temperatures):
            orders = [by_hand(q, bank[name], train.labels, k, t, i if leave_one_out else None)
                      for i, q in enumerate(queries[name])]  # fmt: skip
            top1 = np.mean([order[0] == label for order, label in zip(orders, test.labels, strict=True)])
            top5 = np.mean([label in order[:5] for order, label in zip(orders, test.labels, strict=True)])
            assert results["knn"][name][f"k{k}_t{t:g}"] == pytest.approx({"top1": 100 * top1, "top5": 100 * top5})


def test_figures_are_lightlys(pretrained, knn, images):
    lightly = pytest.importorskip("lightly.utils.benchmarking.knn", reason="lightly is not installed")
    weights, _ = pretrained(str(images / "test"))
    results = knn(weights)
    train, test = list_labelled(images / "train"), list_labelled(images / "test")
    bank, queries = reference_features(weights, train), reference_features(weights, test)
    truth = torch.tensor(test.labels)
    for name in bank:
        ranked = lightly.knn_predict(queries[name], bank[name].T, torch.tensor(train.labels), 7, K, TEMPERATURE)
        assert results["knn"][name][f"k{K}_t{TEMPERATURE}"]["top1"] == pytest.approx(
            100 * (ranked[:, 0] == truth).double().mean().item()
        )


def test_more_neighbours_than_there_are(pretrained, knn, images, tmp_path):
    weights, _ = pretrained(str(images / "test"))
    for test, most in ((images / "test", 42), ("", 41)):
        keys = ("KNN.K", [1, most, most + 1], "INPUT.CROP_SIZE", 48)
        results = knn(weights, *keys, test=test, out=tmp_path / f"{most}")
        assert [name.partition("_")[0] for name in results["knn"]["res5"]] == ["k1", f"k{most}"]  # those that vote
        log = (tmp_path / f"{most}/log.txt").read_text()
        assert f"KNN.K {most + 1} is above the number of training images that can vote, {most}" in log
        assert f"KNN.K {most} is" not in log and "smaller than the 55 pixels of INPUT.CROP_SIZE 48" in log


def test_features_that_are_not_finite_are_null(pretrained, knn, images, tmp_path):
    content = torch.load(pretrained(str(images / "test"))[0], weights_only=True)
    content["model"]["encoder.layer4.1.bn2.running_var"].fill_(-1)  # its root is NaN
    torch.save(content, tmp_path / "broken.pth")
    found = knn(tmp_path / "broken.pth")["knn"]
    assert found["res5"][f"k{K}_t{TEMPERATURE}"] == {"top1": None, "top5": None}
    assert found["res4"][f"k{K}_t{TEMPERATURE}"]["top1"] > 0


# --- files and keys --------------------------------------------------------------------------------------------------


def test_what_is_left_in_the_folder(pretrained, knn, images, tmp_path):
    weights, _ = pretrained(str(images / "test"))
    results = knn(weights, "MODEL.STAGES", ["res5+expansion", "res3"], "KNN.K", [1, 20])
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"command.txt", "config.yaml", "features.pth", "log.txt", "results.json"}
    assert results["weights"]["path"] == str(weights) and len(results["weights"]["sha256"]) == 64
    assert (results["weights"]["source"], results["weights"]["arch"]) == ("loco-det", "resnet18x0.25")
    log = (out / "log.txt").read_text()
    assert "kNN accuracy (%) of 28 images of 7 classes by 42 training images:" in log
    for stage in ("res5+expansion", "res3"):
        figures = results["knn"][stage]["k20_t0.2"]
        row = f"| {stage} | 20 | 0.2 | {figures['top1']:.2f} | {figures['top5']:.2f} |"
        assert row.split() in map(str.split, log.splitlines()), row
    assert yaml.safe_load((out / "config.yaml").read_text())["KNN"]["K"] == [1, 20]


def test_the_cache_saves_the_encoders_pass(pretrained, knn, images, monkeypatch, tmp_path):
    weights, _ = pretrained(str(images / "test"))
    cache = ("FEATURES.CACHE", tmp_path / "shared.pth")
    results = knn(weights, *cache)
    passes, compute = [], pretrain.readout.features.pooled_features

    def counted(encoder, paths, cfg):
        passes.append(len(paths))
        return compute(encoder, paths, cfg)

    monkeypatch.setattr(pretrain.readout.features, "pooled_features", counted)
    again = knn(weights, *cache, out=tmp_path / "again")
    assert not passes and again["knn"] == results["knn"]
    assert list(knn(weights, *cache, "MODEL.STAGES", ["res4"])["knn"]) == ["res4"] and not passes
    knn(weights, *cache, "MODEL.SOURCE.PREFIX", "model/encoder.")  # read another way
    assert passes == [42, 28]


def test_a_cache_of_one_stage_is_not_taken_for_all(pretrained, knn, images):
    weights, _ = pretrained(str(images / "test"))
    assert list(knn(weights, "MODEL.STAGES", ["res4"])["knn"]) == ["res4"]
    assert len(knn(weights)["knn"]) == 8


@pytest.fixture
def moco(pretrained, images, tmp_path):
    """``moco(online, average)``: a file with two networks, under MoCo's names or others."""
    model = torch.load(pretrained(str(images / "test"))[0], weights_only=True)["model"]
    encoder = {name.removeprefix("encoder."): value for name, value in model.items() if name.startswith("encoder.")}
    generator = torch.Generator().manual_seed(0)
    other = {n: torch.rand(v.shape, generator=generator) if v.is_floating_point() else v for n, v in encoder.items()}

    def write(online="encoder_q", average="encoder_k"):
        names = {f"{online}.{n}": v for n, v in encoder.items()} | {f"{average}.{n}": v for n, v in other.items()}
        torch.save({"state_dict": names}, tmp_path / "moco.pth.tar")
        return tmp_path / "moco.pth.tar"

    return write


def test_the_source_is_chosen_by_keys(moco, knn, pretrained, images):
    plain = knn(pretrained(str(images / "test"))[0], "MODEL.STAGES", STAGES)["knn"]
    path = moco()
    assert knn(path)["knn"] == plain
    other = knn(path, "MODEL.SOURCE.EMA", True)
    assert other["knn"] != plain and other["weights"]["location"] == "state_dict/encoder_k."
    path = moco("mine", "yours")
    assert knn(path, "MODEL.SOURCE.PREFIX", "state_dict/mine.")["knn"] == plain
    assert knn(path, "MODEL.SOURCE.PREFIX", "state_dict/yours.")["knn"] == other["knn"]


@pytest.mark.parametrize(("keys", "message"), [
    ([], "its encoders|which no known project's layout fits.*MODEL.SOURCE.PREFIX"),
    (["MODEL.SOURCE.LAYOUT", "moco"], "not laid out as moco"),
    (["MODEL.SOURCE.PREFIX", "state_dict/mine.", "MODEL.SOURCE.EMA", True], "leave out LAYOUT and EMA"),
    (["MODEL.SOURCE.PREFIX", "state_dict/mine.", "MODEL.SOURCE.ENCODER", "resnet50"], "not the resnet50"),
    (["MODEL.SOURCE.PREFIX", "state_dict/mine.", "MODEL.SOURCE.CONFIG_FILE", "x.yaml"], "MODEL.SOURCE.CONFIG_FILE is"),
    (["MODEL.STAGES", ["res6"], "MODEL.SOURCE.PREFIX", "state_dict/mine."], "res6.*res2, res3, res4, res5"),
])  # fmt: skip
def test_a_source_that_does_not_fit(keys, message, moco, refused):
    refused(message, "MODEL.WEIGHTS", moco("mine", "yours"), *keys)


def test_code_in_a_file_runs_only_if_asked(tmp_path, refused):
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, tmp_path / "module.pth")
    weights = ("MODEL.WEIGHTS", tmp_path / "module.pth")
    refused("MODEL.SOURCE.UNSAFE_LOAD", *weights)
    refused("no ResNet among 2 names", *weights, "MODEL.SOURCE.UNSAFE_LOAD", True)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(call_tool, images, tmp_path, capfd):
    """``refused(message, *keys)``: the tool ends with one line and exit code 2, and leaves no results."""

    def check(message, *keys):
        capfd.readouterr()
        data = ("DATASETS.TRAIN", images / "train", "DATASETS.TEST", images / "test", "MODEL.DEVICE", "cpu",
                "INPUT.CROP_SIZE", 32, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", tmp_path / "out")  # fmt: skip
        assert call_tool("knn", *data, *keys) == 2
        error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1 and re.search(message, error[0]), error
        assert not (tmp_path / "out/results.json").exists()

    return check


def test_bad_input_is_one_line(pretrained, images, refused, tmp_path):
    weights, _ = pretrained(str(images / "test"))
    (tmp_path / "notes.txt").write_text("no weights")
    refused("MODEL.WEIGHTS")
    refused("none.pth: no such file", "MODEL.WEIGHTS", tmp_path / "none.pth")
    refused("notes.txt: not a PyTorch checkpoint", "MODEL.WEIGHTS", tmp_path / "notes.txt")
    refused("no stage 'res6'", "MODEL.WEIGHTS", weights, "MODEL.STAGES", ["res6"])
    refused("nowhere: no such folder", "MODEL.WEIGHTS", weights, "DATASETS.TRAIN", tmp_path / "nowhere")
    refused("KNN.K", "MODEL.WEIGHTS", weights, "KNN.K", [0])
    refused("KNN.TEMPERATURE", "MODEL.WEIGHTS", weights, "KNN.TEMPERATURE", [])
    refused("KNN.NEIGHBOURS", "MODEL.WEIGHTS", weights, "KNN.NEIGHBOURS", 3)
    refused("MODEL.SOURCE.NAME", "MODEL.WEIGHTS", weights, "MODEL.SOURCE.NAME", "moco")


def test_a_runs_own_files_are_not_replaced(pretrained, images, refused):
    weights, _ = pretrained(str(images / "test"))
    before = {p.name: p.read_bytes() for p in weights.parent.iterdir()}
    refused("folder of MODEL.WEIGHTS", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", weights.parent)
    assert before == {p.name: p.read_bytes() for p in weights.parent.iterdir()}


def test_as_a_user_runs_it(run_tool, pretrained, images, tmp_path):
    weights, _ = pretrained(str(images / "test"))
    done = run_tool("knn.py", "MODEL.WEIGHTS", weights, "DATASETS.TRAIN", images / "train", "DATASETS.TEST", "",
                    "OUTPUT_DIR", tmp_path, "INPUT.CROP_SIZE", 32, "MODEL.DEVICE", "cpu")  # fmt: skip
    assert done.returncode == 0 and "of 42 images of 7 classes by the others:" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr and (tmp_path / "results.json").is_file()
    done = run_tool("knn.py", "--resume")
    assert done.returncode == 2 and "leave out --eval-only and --resume" in done.stderr


def test_the_recipe_is_the_papers():
    cfg = get_cfg()
    add_encoder_config(cfg)
    cfg.merge_from_file(ROOT / "configs/readout/knn.yaml")
    cfg.MODEL.WEIGHTS = "any"
    check(cfg)
    assert (cfg.KNN.K, cfg.KNN.TEMPERATURE, cfg.INPUT.CROP_SIZE, cfg.MODEL.STAGES) == ([200], [0.07], 224, [])


def test_older_results_do_not_outlive_a_run_that_fails(pretrained, knn, images, refused, tmp_path):
    weights, _ = pretrained(str(images / "test"))
    knn(weights)
    refused("no stage 'res6'", "MODEL.WEIGHTS", weights, "MODEL.STAGES", "[res6]", "INPUT.CROP_SIZE", 24)
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["MODEL"]["STAGES"] == ["res6"]


def test_files_of_others_are_not_replaced(pretrained, images, refused, tmp_path):
    weights, _ = pretrained(str(images / "test"))
    other, _ = pretrained("")
    kept = [run.parent / name for run in (other, weights) for name in ("model_final.pth", "config.yaml", "command.txt")]
    before = [path.read_bytes() for path in kept]
    refused("holds another kind of run", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", other.parent)
    refused("is MODEL.WEIGHTS", "MODEL.WEIGHTS", weights, "FEATURES.CACHE", weights)
    refused("is not a file of features", "MODEL.WEIGHTS", weights, "FEATURES.CACHE", other)
    refused('TEST "" has each image', "MODEL.WEIGHTS", weights, "DATASETS.TEST", images / "train")
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear" / "results.json").write_text('{"linear": {}}')
    refused("results of another kind", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "linear")
    assert [path.name for path in (tmp_path / "linear").iterdir()] == ["results.json"]
    assert before == [path.read_bytes() for path in kept]


def test_sigterm_stops_at_once_with_one_line(call_tool, pretrained, images, tmp_path, monkeypatch, capsys):
    weights, out = pretrained(str(images / "test"))[0], tmp_path / "out"
    stopped = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60))  # noqa: E731
    monkeypatch.setattr(pretrain.readout.features, "pooled_features", stopped)
    begun = time.monotonic()
    data = ("DATASETS.TRAIN", images / "train", "DATASETS.TEST", images / "test", "MODEL.DEVICE", "cpu")
    assert call_tool("knn", "MODEL.WEIGHTS", weights, *data, "OUTPUT_DIR", out) == 143
    assert time.monotonic() - begun < 30
    assert capsys.readouterr().err == "stopped by SIGTERM: there is no result; the same command starts anew\n"
    assert not (out / "results.json").exists() and not (out / "features.pth").exists()

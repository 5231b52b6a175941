"""tools/linear_probe.py as a user runs it: files, interruptions, several processes, bad input."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from checkout import ROOT
from child_processes import SIGNALLED, TORCHRUN, child_environment
from PIL import Image
from run_files import results

from pretrain.encoders import build_encoder
from pretrain.engine import precision

FILES = {"config.yaml", "command.txt", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint", "results.json",
         "probe.png", "features.pth"}  # fmt: skip
SMALL = ("INPUT.CROP_SIZE", 32, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4,
         "SOLVER.EPOCHS", 3.0, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.LOG_PERIOD", 1)  # fmt: skip
CACHED = ("--config-file", ROOT / "configs/readout/cached.yaml")
ONLINE = ("--config-file", ROOT / "configs/readout/imagenet/linear.yaml")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A checkpoint as torchvision's, and two folders of two classes with 9 images each: 18 - 2 to train on."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    torch.manual_seed(0)
    torch.save(build_encoder("resnet18").state_dict(), root / "resnet18.pth")
    for split in ("train", "val"):
        for c, colour in enumerate(((200, 60, 60), (60, 60, 200))):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(9):
                pixels = (colour + rng.integers(-50, 50, (40, 40, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{c}/{i}.png")
    return root


def arguments(data, out, *more):
    pairs = ("MODEL.WEIGHTS", data / "resnet18.pth", "DATASETS.TRAIN", data / "train", "DATASETS.TEST", data / "val")
    return [*pairs, "OUTPUT_DIR", out, *SMALL, *more]


@pytest.fixture(scope="module")
def cached_run(run_tool, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("cached")
    done = run_tool("linear_probe.py", *CACHED, *arguments(data, out))
    assert done.returncode == 0, done.stderr
    return out, done


def test_files_and_figures_of_a_run(cached_run, data):
    out, done = cached_run
    assert {p.name for p in out.iterdir()} - {p.name for p in out.glob("events*")} == FILES and done.stderr == ""
    found = results(out)
    assert set(found) == {"kind", "version", "loco_det", "protocol", "weights", "images", "linear", "seconds"}
    assert found["images"] == {"train": 16, "held_out": 2, "test": 18, "classes": 2}
    assert found["weights"]["path"] == str(data / "resnet18.pth") and len(found["weights"]["sha256"]) == 64
    assert (found["weights"]["source"], found["weights"]["arch"]) == ("torchvision", "resnet18")
    assert found["protocol"]["chosen_on"] == "held-out" and found["protocol"]["crop_size"] == 32
    assert list(found["linear"]) == ["res2", "res3", "res4", "res5"]
    assert found["linear"]["res5"]["top1"] > 80 and "top5" not in found["linear"]["res5"]  # colours are easy
    assert set(found["linear"]["res5"]["sweep"]) == {"0.003", "0.01", "0.03", "0.1", "0.3", "1"}
    for word in ("  learning rate |", "chosen on the held-out training images", "iter: 12/12"):
        assert word in done.stdout


def test_the_features_are_shared_and_stages_chosen(call_tool, cached_run, data, tmp_path):
    features = cached_run[0] / "features.pth"
    before = features.stat().st_mtime_ns
    more = ("FEATURES.CACHE", features, "MODEL.STAGES", "['res4']")
    assert call_tool("linear_probe", *CACHED, *arguments(data, tmp_path, *more)) == 0
    found = results(tmp_path)
    assert list(found["linear"]) == ["res4"] and found["linear"]["res4"] == results(cached_run[0])["linear"]["res4"]
    assert features.stat().st_mtime_ns == before and not (tmp_path / "features.pth").exists()


@pytest.mark.parametrize("tool", ["linear_probe", "knn"])
@pytest.mark.parametrize("fast", [True, False])
def test_the_features_type_follows_the_machine(call_tool, data, tmp_path, monkeypatch, tool, fast):
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"amx_bf16"} if fast else {"avx2"})
    more = ("SOLVER.AMP.ENABLED", "auto", "INPUT.CROP_SIZE", 64, "MODEL.STAGES", "['res2']", "SOLVER.EPOCHS", 1.0)
    assert call_tool(tool, *CACHED, *arguments(data, tmp_path, *more)) == 0
    assert torch.load(tmp_path / "features.pth", weights_only=True)["key"]["amp"] is fast
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["SOLVER"]["AMP"]["ENABLED"] is fast
    if tool == "linear_probe":  # goes on with features of the type that it began with
        monkeypatch.setattr(precision, "cpu_flags", lambda: {"avx2"} if fast else {"amx_bf16"})
        assert call_tool(tool, *CACHED, "--resume", *arguments(data, tmp_path, *more)) == 0
        assert torch.load(tmp_path / "features.pth", weights_only=True)["key"]["amp"] is fast


def test_a_finished_run_is_tested_again(call_tool, cached_run, data):
    out = cached_run[0]
    before, model = results(out), (out / "model_final.pth").read_bytes()
    assert call_tool("linear_probe", *CACHED, "--resume", *arguments(data, out)) == 0
    assert results(out)["linear"] == before["linear"] and (out / "model_final.pth").read_bytes() == model
    assert "all 12 iterations are done, only tests remain" in (out / "log.txt").read_text()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_goes_on_with_its_own_images(call_tool, cached_run, data, tmp_path, capsys, split):
    for name in ("train", "val"):
        shutil.copytree(data / name, tmp_path / name)
    run, out = cached_run[0], tmp_path / "out"
    shutil.copytree(run, out)
    more = ("DATASETS.TRAIN", tmp_path / "train", "DATASETS.TEST", tmp_path / "val", "OUTPUT_DIR", out)
    for path in (tmp_path / split).glob("*/*"):
        os.utime(path, (1, 1))  # copied without its time: the content counts
    assert call_tool("linear_probe", *CACHED, "--resume", *arguments(data, run, *more)) == 0
    with open(tmp_path / split / "class1/3.png", "ab") as f:
        f.write(b"0")
    assert call_tool("linear_probe", *CACHED, "--resume", *arguments(data, run, *more)) == 2
    name = {"train": "training", "val": "test"}[split]
    assert f"is a run with other {name} images: resume it" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["linear_probe", "knn"])
def test_a_config_is_whole_or_as_it_was(call_tool, cached_run, data, tmp_path, capsys, monkeypatch, tool):
    out = shutil.copytree(cached_run[0], tmp_path / "out")
    (out / "results.json").unlink()  # which would be the other tool's
    before = (out / "config.yaml").read_text()

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    flags = [*CACHED, "--resume"] if tool == "linear_probe" else CACHED
    assert call_tool(tool, *flags, *arguments(data, out, "SOLVER.LOG_PERIOD", 2)) == 2
    assert "no space left" in capsys.readouterr().err
    assert (out / "config.yaml").read_text() == before and not list(out.glob("*.tmp*"))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_interrupted_online_runs_end_with_the_same_bits(run_tool, data, tmp_path, processes):
    signalled = tmp_path / "signalled.py"
    signalled.write_text(
        SIGNALLED.format(module="pretrain.readout.probe", trainer="LinearProbe", tool="linear_probe.py")
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def run(out, *command, workers=0, forked=True):
        keys = ("MODEL.STAGES", "[]", "SOLVER.STEPS", "[1.5]", "SOLVER.BASE_LR", "[3.0, 30.0]", "SOLVER.MOMENTUM", 0.5,
                "FEATURES.STANDARDIZE", True, "DATALOADER.NUM_WORKERS", workers)  # fmt: skip
        command = [*command, *ONLINE, *arguments(data, out, *keys)]
        if "--resume" in command:  # before the KEY VALUE pairs
            command.remove("--resume")
            command.insert(command.index("--config-file"), "--resume")
        if processes == 1 and forked:
            return run_tool(*command, OMP_NUM_THREADS="1")
        command = [sys.executable, *(TORCHRUN if processes == 2 else ()), *command]
        env = child_environment(OMP_NUM_THREADS="1")
        return subprocess.run([*map(str, command)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)

    tool = ROOT / "tools/linear_probe.py"
    in_one_go = run(whole, tool)
    assert in_one_go.returncode == 0, in_one_go.stderr
    killed = run(broken, signalled, "KILL", 5, processes - 1)
    assert killed.returncode != 0 and not (broken / "results.json").exists()
    if processes == 1:
        terminated = run(broken, signalled, "TERM", 7, 0, "--resume", workers=1)
        assert terminated.returncode == 0 and "rror" not in terminated.stderr, terminated.stderr
        assert "SIGTERM: checkpoint written after iteration 7; go on with --resume" in terminated.stdout
        assert [p.name for p in broken.glob("*.pth")] == ["model_0000007.pth"]
        assert not (broken / "results.json").exists()
    resumed = run(broken, tool, "--resume", forked=False)  # another seed of hashes
    assert resumed.returncode == 0, resumed.stderr
    a, b = (torch.load(out / "model_final.pth", weights_only=True) for out in (whole, broken))
    assert a["iteration"] == 11 and all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    for part in ("optimizer", "scheduler"):
        assert str(a[part]) == str(b[part])
    assert results(whole)["linear"] == results(broken)["linear"]
    assert results(whole)["protocol"]["processes"] == processes
    assert results(whole)["protocol"]["chosen_on"] == "test"
    assert "chosen on the test images themselves" in resumed.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["MODEL.WEIGHTS", ""], "set MODEL.WEIGHTS to the checkpoint"),
        (["MODEL.WEIGHTS", "/nowhere.pth"], "/nowhere.pth"),
        (["MODEL.STAGES", "['res9']"], "no stage 'res9' in this encoder, which has res2, res3, res4, res5"),
        (["DATASETS.TRAIN", "/nowhere"], "DATASETS.TRAIN /nowhere: no such folder of labelled images"),
        (["DATASETS.TEST", ""], "DATASETS.TEST is empty"),
        (["SOLVER.IMS_PER_BATCH", "64"], "16 training images are fewer than SOLVER.IMS_PER_BATCH 64"),
        (["SOLVER.BASE_LR", "30"], "SOLVER.BASE_LR is 30, but must be a list: write [30]"),
        (["SOLVER.BASE_LRR", "[30.0]"], "SOLVER.BASE_LRR"),
        (["SOLVER.SCHEDULE", "steps"], "SOLVER.STEPS is [30.0, 60.0, 90.0], but must ascend"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_bad_input_gets_one_line(call_tool, data, tmp_path, capsys, more, message):
    flags, pairs = (more, []) if more[0].startswith("--") else ([], more)
    assert call_tool("linear_probe", *CACHED, *flags, *arguments(data, tmp_path / "out", *pairs)) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out/results.json").exists()
    if "--resume" not in more:  # which is refused when the features are there
        assert not (tmp_path / "out").exists()


def test_the_folder_of_the_weights_is_not_written_to(call_tool, data, capsys):
    before = sorted(data.iterdir())
    assert call_tool("linear_probe", *CACHED, *arguments(data, data)) == 2
    assert "is the folder of MODEL.WEIGHTS" in capsys.readouterr().err and sorted(data.iterdir()) == before


def test_all_diverged(call_tool, data, tmp_path, capsys):
    more = ("SOLVER.BASE_LR", "[1e30]", "SOLVER.WEIGHT_DECAY", 1.0)
    assert call_tool("linear_probe", *CACHED, *arguments(data, tmp_path, *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: all 4 classifiers have diverged at iteration") and error.count("\n") == 1
    assert not (tmp_path / "results.json").exists()

"""loco-det evaluate: names of rows, bad input, the plan, and a whole evaluation of two iterations."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest
import torch
import yaml
from checkout import ROOT
from child_processes import child_environment

from loco_det.cli.common.evaluation import link_images, name_of, named_rows, why_no_control
from loco_det.cli.evaluate import parser
from loco_det.demo_scenes.writing import make_demo_data
from loco_det.ranking.data import find_data
from loco_det.ranking.settings import Candidate
from pretrain.encoders import build_encoder

NARROW = ("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
          "MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", 2,
          "TEST.PRECISE_BN.NUM_ITER", 1, "TEST.NUM_PICTURES", 1)  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The four words of --data: ten scenes to train on, two to test on."""
    root = tmp_path_factory.mktemp("scenes")
    make_demo_data(root, num_train=10, num_val=2, size=(64, 96), workers=1, layouts=("coco",))
    folder = root / "coco"
    return [folder / "annotations/instances_train.json", folder / "train",
            folder / "annotations/instances_val.json", folder / "val"]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.manual_seed(0)
    torch.save(build_encoder("resnet18").state_dict(), path)
    return path


@pytest.fixture
def call(call_tool):
    """``call(*arguments)``: the exit code of a command line, in this process."""
    return functools.partial(call_tool, "evaluate")


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("output/loco/model_final.pth", "loco"),
        ("moco_v2.pth.tar", "moco_v2"),
        ("https://example.org/a/b/vicreg.pth?download=1", "vicreg"),
        ("https://example.org/dino/checkpoint.pth", "dino"),
        ("hf://someone/resnet-50", "resnet-50"),
        ("moco_v2_800ep", "moco_v2_800ep"),
        ("a folder/über net.pkl", "über_net"),
        ("..hidden.pth", "hidden"),
        ("...pth", "checkpoint"),
    ],
)
def test_a_row_is_called_by_its_file(checkpoint, name):
    assert name_of(checkpoint) == name


def test_only_networks_that_pretraining_has_get_a_random_control():
    """Others would fail at their first step."""
    for name in ("resnet50", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "regnety_004"):
        assert why_no_control(name) is None
    assert "the stages of timm's efficientnet.py are not known here" in why_no_control("test_efficientnet")


def test_rows_may_be_named(tmp_path):
    for name in ("a.pth", "b.pth", "x=y.pth", "c,d.pth"):
        (tmp_path / name).touch()
    a, b, odd, comma = (str(tmp_path / name) for name in ("a.pth", "b.pth", "x=y.pth", "c,d.pth"))
    rows = named_rows([f"one={a}", f"two={a},{b}", odd, f"three={comma}", "moco_v2_800ep"], 2)
    assert [row.checkpoints for row in rows] == [[a], [a, b], [odd], [comma], ["moco_v2_800ep"]]
    addresses = ["https://example.org/a,b.pth", "https://example.org/c.pth"]
    assert named_rows([f"x={','.join(addresses)}"], 2)[0].checkpoints == addresses
    assert named_rows([f"y={addresses[0]}"], 2)[0].checkpoints == addresses[:1]
    assert [row.name for row in rows] == ["one", "two", "x_y", "three", "moco_v2_800ep"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["moco_v2_800ep", "https://example.org/moco_v2_800ep.pth"], "2 checkpoints are called moco_v2_800ep: name"),
        (["moco_v2_800"], "moco_v2_800: no such file, and no published checkpoint: did you mean moco_v2_800ep"),
        (["nothing.pth"], "nothing.pth: no such file"),
        (["a=moco_v2_800ep,moco_v2_200ep"], "2 checkpoints, but --seeds 3: one, or one for each seed"),
        (["random_resnet50=moco_v2_800ep"], "names with random_ are of the controls"),
        (["features=moco_v2_800ep"], "features is what the evaluation calls a file of its own: name the row"),
        (["frozen.yaml=moco_v2_800ep"], "frozen.yaml is what the evaluation calls a file of its own"),
        (["..=moco_v2_800ep"], "..=moco_v2_800ep: no such file"),
        (["moco_v2_800ep", "--lrs", "nan"], "--lrs must be above 0, and finite: nan"),
        (["moco_v2_800ep", "--opts", "MODEL.WEIGHTS", "a.pkl"], "--opts MODEL.WEIGHTS: the evaluation sets this key"),
        (["moco_v2_800ep", "--seeds", "0"], "--seeds is 0, but must be at least 1"),
        (["moco_v2_800ep", "--lrs", "fast"], "--lrs takes auto, or numbers: fast"),
        (["moco_v2_800ep", "--lrs", "0.1", "-0.2"], "--lrs must be above 0"),
        (["moco_v2_800ep", "--protocol", "probe"], "--protocol probe needs labelled images: --labelled TRAIN TEST"),
        (["moco_v2_800ep", "--budget", "minutes", "--protocol", "finetune"], "leave out --protocol finetune"),
        (["moco_v2_800ep", "--data", "imagenet"], "--data takes coco, cityscapes, voc, or four words"),
        (["moco_v2_800ep"], r"--data coco: .*coco/train2017 is not there; DETECTRON2_DATASETS has to be the folder"),
    ],
)
def test_bad_input(call, capfd, tmp_path, monkeypatch, words, message):
    """One line, exit code 2, and no folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    assert call("--output", tmp_path / "out", *words) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_bad_input_of_ones_own_data(call, capfd, tmp_path, scenes, checkpoint):
    content = json.loads(scenes[0].read_text())
    content["images"] = content["images"][:4]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(content))
    words = [checkpoint, "--data", few, *scenes[1:], "--plan", "--output", tmp_path / "out"]
    assert call(*words) == 2
    assert "4 training images are too few to choose a learning rate on 20 % of them" in capfd.readouterr().err
    assert call(*words, "--lrs", 0.1, "--protocol", "frozen") == 0
    # the folder has six more images, on which the control must not be calibrated
    assert f"DATASETS.TRAIN {tmp_path / 'out' / 'training_images'} " in capfd.readouterr().out


def test_links_to_the_training_images(tmp_path, scenes):
    data = find_data([*map(str, scenes)], tmp_path)
    assert data.mixed == []
    data.mixed = sorted(scenes[1].iterdir())[:2]
    rows = [Candidate("random_resnet18", ["random"], True, "resnet18")]
    plan = types.SimpleNamespace(folder=tmp_path, data=data, settings=types.SimpleNamespace(rows=rows))
    link_images(plan)
    assert [path.resolve() for path in sorted((tmp_path / "training_images").iterdir())] == data.mixed
    assert os.listdir(tmp_path) == ["training_images"]


def test_the_plan_runs_nothing(call, capfd, tmp_path, scenes, checkpoint):
    code = call(f"mine={checkpoint}", "moco_v2_800ep", "--data", *scenes, "--output", tmp_path / "out", "--plan")
    out = capfd.readouterr().out
    assert code == 0 and not (tmp_path / "out").exists()
    commands = [line.strip() for line in out.splitlines() if line.startswith("    ")]
    # per row: conversion (of a control with calibration, for each of 3 seeds), 3 rates and 3 seeds of both protocols
    assert len(commands) == 2 * (1 + 12) + 2 * (6 + 12)
    assert sum("MODEL.ENCODER resnet50" in command for command in commands) == 3  # it is not downloaded for the plan
    assert all(command.startswith("python tools/") for command in commands)
    assert "in all about " in out.splitlines()[-1] and " GB in " in out.splitlines()[-1]
    assert "(96 s, 5 MB)" in out or " s, 5 MB)" in out or " min, 5 MB)" in out


@pytest.fixture(scope="module")
def evaluated(run_tool, tmp_path_factory, scenes, checkpoint):
    """A whole evaluation with a refused checkpoint beside a good one: the folder, and how the command ended."""
    out = tmp_path_factory.mktemp("evaluated")
    (out / "page.html").write_text("<!DOCTYPE html><title>not found</title>")
    words = ["--data", *scenes, "--lrs", 0.01, 0.02, "--seeds", 1, "--protocol", "frozen", "--no-control"]
    done = run_tool("evaluate.py", f"good={checkpoint}", f"bad={out / 'page.html'}", *words,
                    "--output", out / "ranking", "--opts", *NARROW)  # fmt: skip
    return out / "ranking", done


def test_a_refused_checkpoint_does_not_stop_the_others(evaluated):
    out, done = evaluated
    assert done.returncode == 1 and "warning: bad: refused: " in done.stderr and "Traceback" not in done.stderr
    rows = {row["name"]: row for row in yaml.safe_load((out / "evaluation.yaml").read_text())["rows"]}
    assert rows["bad"]["problem"].startswith("refused: ") and rows["good"]["problem"] == ""
    assert rows["good"]["architecture"] == "resnet18" and len(rows["good"]["sha256"][0]) == 64
    results = json.loads((out / "good" / "frozen" / "seed0" / "results.json").read_text())
    assert results["frozen"] and results["iteration"] == 2 and "bbox" in results["results"]


def test_the_rate_was_chosen_on_training_images(evaluated):
    out, _ = evaluated
    for rate in ("0.01", "0.02"):
        results = json.loads((out / "good" / "frozen" / "choice" / f"lr{rate}" / "results.json").read_text())
        assert results["dataset"].endswith("_train_held_out") and results["train_dataset"].endswith("_train_fit")
    results = json.loads((out / "good" / "frozen" / "seed0" / "results.json").read_text())
    assert results["dataset"].endswith("_test") and results["train_dataset"].endswith("_train")
    config = yaml.safe_load((out / "good" / "frozen" / "seed0" / "config.yaml").read_text())
    assert config["SOLVER"]["BASE_LR"] in (0.01, 0.02) and config["DATASETS"]["HELD_OUT"] == 0


def test_every_command_is_written_down(evaluated):
    out, _ = evaluated
    lines = (out / "commands.txt").read_text().splitlines()
    assert len(lines) == 4 and all(line.startswith("python tools/") for line in lines)
    assert "CHOSEN" not in "".join(lines)


def test_what_is_done_is_not_done_again(evaluated, run_tool, scenes, checkpoint):
    out, _ = evaluated
    before = {path: path.stat().st_mtime_ns for path in out.rglob("results.json") if path.parent != out}
    words = ["--data", *scenes, "--lrs", 0.01, 0.02, "--seeds", 1, "--protocol", "frozen", "--no-control"]
    again = run_tool("evaluate.py", f"good={checkpoint}", *words, "--output", out, "--opts", *NARROW)
    assert "4 of 4 steps are done already" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("results.json") if path.parent != out}
    words[words.index(0.02)] = 0.03
    other = run_tool("evaluate.py", f"good={checkpoint}", *words, "--output", out, "--opts", *NARROW)
    assert other.returncode == 2 and "other settings (rates of frozen)" in other.stderr


def test_a_checkpoint_that_was_replaced_is_refused(evaluated, run_tool, scenes, checkpoint):
    """The figures that are there are not those of the file that now has its name."""
    out, _ = evaluated
    words = ["--data", *scenes, "--lrs", 0.01, 0.02, "--seeds", 1, "--protocol", "frozen", "--no-control"]
    content, before = checkpoint.read_bytes(), (out / "evaluation.yaml").read_text()
    torch.manual_seed(1)
    torch.save(build_encoder("resnet18").state_dict(), checkpoint)
    try:
        done = run_tool("evaluate.py", f"good={checkpoint}", *words, "--output", out, "--opts", *NARROW)
    finally:
        checkpoint.write_bytes(content)
    assert done.returncode == 2 and f"{checkpoint} has been replaced since {out / 'good'} was made of it" in done.stderr
    assert (out / "evaluation.yaml").read_text() == before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_interrupted(tmp_path, scenes, checkpoint, signum):
    command = [sys.executable, "tools/evaluate.py", checkpoint, "--data", *scenes, "--output", tmp_path / "out"]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=child_environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith("[1/") and "convert and verify" in line
    time.sleep(1)
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if signum == signal.SIGINT else 143), error
    assert error.splitlines()[-1] == "interrupted; the same command goes on from here" and "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_two_at_once_are_refused(call, capfd, tmp_path, scenes, checkpoint):
    from pretrain.files.lock import lock_folder, unlock_all

    lock_folder(tmp_path / "out")
    try:
        command = [sys.executable, "tools/evaluate.py", checkpoint, "--data", *scenes, "--output", tmp_path / "out"]
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=child_environment(), text=True, capture_output=True
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    finally:
        unlock_all()
    assert os.listdir(tmp_path / "out") in ([], [".lock"])


def test_the_help_has_an_example():
    assert "--plan" in parser().format_help() and "tools/evaluate.py" in parser().format_help()

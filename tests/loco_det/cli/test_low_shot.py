"""tools/low_shot.py on a train2017 of twenty generated pictures: two splits, their mean, resuming and bad input."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from checkout import ROOT
from detectron2.config import get_cfg
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from loco_det.cli import low_shot
from loco_det.cli.common.low_shot_summary import summarize, text
from loco_det.config import add_loco_config
from loco_det.data.low_shot import SEEDS, draw

IDS = range(100, 140)
CONFIG = "configs/detection/coco_1k_finetune/resnet50_random.yaml"
TINY = ("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('coco_2017_train_10pct_seed0',)", "INPUT.MIN_SIZE_TRAIN", "(64,)",
        "INPUT.MIN_SIZE_TEST", 64, "SOLVER.REFERENCE_WORLD_SIZE", 0, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2,
        "SOLVER.STEPS", "(1,)", "SOLVER.CHECKPOINT_PERIOD", 1, "DATALOADER.NUM_WORKERS", 0,
        "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 32,
        "MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5, "TEST.PRECISE_BN.NUM_ITER", 1,
        "TEST.NUM_PICTURES", 1)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """COCO's layout and classes."""
    root, rng = tmp_path_factory.mktemp("datasets") / "coco", np.random.default_rng(0)
    classes = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    square = {"bbox": [10, 12, 30, 40], "area": 1200, "iscrowd": 0, "segmentation": [[10, 12, 40, 12, 40, 52, 10, 52]]}
    (root / "annotations").mkdir(parents=True)
    for split, ids in (("train2017", IDS), ("val2017", IDS[:2])):
        (root / split).mkdir()
        for i in ids:
            Image.fromarray(rng.integers(0, 255, (64, 96, 3), np.uint8)).save(root / split / f"{i}.jpg")
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 96} for i in ids]
        objects = [{"id": k, "image_id": i, "category_id": 1 + k % 2, **square} for k, i in enumerate(ids, 1)]
        content = {"images": images, "annotations": objects, "categories": classes}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root.parent


@pytest.fixture
def call(call_tool):
    """``call(*arguments)``: the exit code of a command line, in this process."""
    return functools.partial(call_tool, "low_shot")


@pytest.fixture(scope="module")
def trained(run_tool, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("low_shot")
    done = run_tool("low_shot.py", *arguments(out), DETECTRON2_DATASETS=str(data))
    assert done.returncode == 0, done.stderr
    return out, done


def arguments(out, *more):
    return ["--config-file", CONFIG, "--num-splits", 2, *TINY, "OUTPUT_DIR", out, *more]


def test_each_split_is_trained_on_its_own_images(trained):
    out, done = trained
    for seed in range(2):
        log = (out / f"seed{seed}" / "log.txt").read_text()
        assert f"coco_2017_train_10pct_seed{seed}: 4 of 40 images" in log
        assert json.loads((out / f"seed{seed}" / "results.json").read_text())["iteration"] == 2
    assert draw(IDS, "10%", 0) != draw(IDS, "10%", 1)
    assert not (out / "seed2").exists() and "already done" not in done.stdout


def test_summary(trained):
    out, done = trained
    summary = json.loads((out / "summary.json").read_text())
    results = [json.loads((out / f"seed{k}" / "results.json").read_text())["results"] for k in range(2)]
    for name, task in (("box_ap", "bbox"), ("mask_ap", "segm")):
        values = [r[task]["AP"] for r in results]
        figures = {"mean": sum(values) / 2, "std": abs(values[0] - values[1]) / 2**0.5}
        figures = {key: pytest.approx(value) for key, value in figures.items()}
        assert summary[name] == {"values": values, **figures, "published": None}
    assert summary["splits"] == ["seed0", "seed1"]
    assert (summary["train"], summary["test"]) == ("coco_2017_train_10pct", "coco_2017_val")
    row = "random, R50, fine-tuned on 1K COCO images, mean of 5 (LoCo, Table 3)"
    assert f"differs from the published row ({row}) in: data (" in done.stdout
    assert "trained on coco_2017_train_10pct" in summary["differences"][0]
    assert "splits (2, the row has 5)" in done.stdout and "published: 2.5" not in done.stdout
    assert [text.partition(" ")[0] for text in summary["differences"]] == ["data", "schedule", "settings", "splits"]


def test_finished_splits_are_kept_and_others_go_on(call, trained, data, monkeypatch, capfd):
    out, _ = trained
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    times = {path: path.stat().st_mtime_ns for path in out.glob("seed0/*")}
    unfinished = json.loads((out / "seed1" / "results.json").read_text()) | {"problems": ["analysis: it failed"]}
    (out / "seed1" / "results.json").write_text(json.dumps(unfinished))
    (out / "seed1" / "last_checkpoint").write_text("model_0000000.pth")  # as if it had been interrupted there
    assert call(*arguments(out)) == 0
    printed = capfd.readouterr().out
    assert "seed0: already done" in printed and "seed1: resuming on coco_2017_train_10pct_seed1" in printed
    assert "Starting training from iteration 1" in printed
    assert {path: path.stat().st_mtime_ns for path in out.glob("seed0/*")} == times
    again = json.loads((out / "seed1" / "results.json").read_text())
    assert (again["iteration"], again["problems"]) == (2, [])


def test_splits_of_another_config_are_not_mixed_in(call, trained, capsys):
    out, _ = trained
    assert call(*arguments(out, "SOLVER.BASE_LR", 0.01)) == 2
    error = capsys.readouterr().err
    assert "holds splits of another config, which differs in SOLVER: choose another OUTPUT_DIR" in error
    before = (out / "low_shot.yaml").read_text()
    assert call(*arguments(out, "DATALOADER.NUM_WORKERS", 3)) == 0  # all of them are done
    assert (out / "low_shot.yaml").read_text() == before
    config = yaml.safe_load(before)
    config["PUBLISHED"]["WEIGHTS"] = "pretrain/resnet50_loco.yaml"  # as an earlier version named its recipe
    (out / "low_shot.yaml").write_text(yaml.safe_dump(config))
    assert call(*arguments(out)) == 0
    assert (out / "low_shot.yaml").read_text() == before


def test_settings_that_nothing_was_trained_with_do_not_count(call, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(low_shot, "run_child", lambda command: tried.append(command[-5:]) or (2, []))
    assert call(*arguments(tmp_path, "MODEL.WEIGHTS", "/nowhere.pkl")) == 2
    assert call(*arguments(tmp_path)) == 2
    name, folder = "('coco_2017_train_10pct_seed0',)", str(tmp_path / "seed0")
    assert [c[1:] for c in tried] == [["DATASETS.TRAIN", name, "OUTPUT_DIR", folder]] * 2


@pytest.mark.parametrize(
    ("signum", "code", "message"),
    [pytest.param(signal.SIGINT, 130, "interrupted\n", marks=pytest.mark.slow), (signal.SIGTERM, None, None)],
)
def test_signals_reach_the_training_and_are_waited_for(data, tmp_path, signum, code, message):
    # Long enough to be interrupted; it ends by itself should this test be killed before it can end it
    options = arguments(tmp_path, "SOLVER.MAX_ITER", 200, "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", 10)
    command = [sys.executable, "tools/low_shot.py", *map(str, options)]
    env, child = {**os.environ, "DETECTRON2_DATASETS": str(data)}, None
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        end = time.time() + 120
        while not (tmp_path / "seed0" / "last_checkpoint").exists():
            time.sleep(0.1)
            assert process.poll() is None and time.time() < end
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        process.send_signal(signum)
        _, error = process.communicate(timeout=100)
        assert not Path(f"/proc/{child}").exists()
    except BaseException:
        if child:  # which is in a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        raise
    finally:
        process.kill()
    assert process.returncode == code if code else process.returncode != 0
    assert not message or error.endswith(message) and error.count("interrupted") < 3
    assert not (tmp_path / "seed1").exists() and not (tmp_path / "summary.json").exists()
    last = tmp_path / "seed0" / (tmp_path / "seed0" / "last_checkpoint").read_text()
    assert 0 < torch.load(last, weights_only=False)["iteration"] < 199


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["DATASETS.TRAIN", "('coco_2017_train',)"], "must be one low-shot set such as coco_2017_train_10k_seed0"),
        (["DATASETS.TRAIN", "('coco_2017_train_1k_seed0', 'coco_2017_train_1k_seed1')"], "must be one low-shot set"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is (), but must be one data set"),
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LRR"),
    ],
)
def test_bad_input_gets_one_line(call, tmp_path, capsys, change, message):
    assert call(*arguments(tmp_path / "out", *change)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco_2017_train_3k_seed0", "coco_2017_train_3k_seed0' is not a registered data set"),
        ("coco_2017_train_1k_seed0", "data set coco_2017_train_1k_seed0: 1000 of 40 images cannot be drawn"),
    ],
)
def test_what_the_training_refuses_gets_one_line_too(call, data, tmp_path, monkeypatch, capfd, name, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    assert call(*arguments(tmp_path, "DATASETS.TRAIN", f"('{name}',)")) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_a_training_that_ends_without_a_result_ends_all(call, tmp_path, monkeypatch, capsys):
    for code in (0, -9):
        monkeypatch.setattr(low_shot, "run_child", lambda _, code=code: (code, []))
        assert call(*arguments(tmp_path)) == 1
        assert "seed0 is not finished: the same command goes on from here\n" in capsys.readouterr().err


def test_overlays_are_for_each_training(call, tmp_path, monkeypatch):
    """Merged before the splits are compared, and handed on."""
    commands = []
    monkeypatch.setattr(low_shot, "run_child", lambda command: (commands.append(command), (3, []))[1])
    assert call("--overlay", "cpu", *arguments(tmp_path)) == 3
    place = commands[0].index("--overlay")
    assert commands[0][place + 1] == "cpu" and place < commands[0].index("DATASETS.TRAIN")
    assert "BATCH_SIZE_PER_IMAGE: 128" in (tmp_path / "low_shot.yaml").read_text()


def test_usage(call, capsys):
    assert low_shot.SPLITS == len(SEEDS)
    assert call("--config-file", CONFIG, "--num-splits", 6) == 2 and "--num-splits" in capsys.readouterr().err
    assert call("--help") == 0
    assert "configs/detection/coco_1k_finetune/resnet50_loco_800ep.yaml" in capsys.readouterr().out


def test_mean_and_deviation(tmp_path):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/detection/coco_10k_finetune/resnet50_loco_800ep.yaml"))
    folders = {}
    for k, (box, mask) in enumerate(((26.0, 25.0), (27.0, 24.0), (28.0, None), (29.0, 26.0), (30.0, 27.0))):
        folders[f"seed{k}"] = tmp_path / str(k)
        folders[f"seed{k}"].mkdir()
        results = {"results": {"bbox": {"AP": box}, "segm": {"AP": mask}}, "published": {"row": "x", "differences": []}}
        (tmp_path / str(k) / "results.json").write_text(json.dumps(results))
    summary = summarize(cfg, folders)
    box = {"values": [26, 27, 28, 29, 30], "mean": 28, "std": pytest.approx(2.5**0.5), "published": 27.8}
    assert summary["box_ap"] == box
    assert summary["mask_ap"] == {"values": [25, 24, None, 26, 27], "mean": None, "std": None, "published": 25.6}
    box, mask = text(summary).splitlines()[1:]
    assert box.split()[:5] == ["box", "AP", "28.0", "±", "1.6"] and "published: 27.8 (LoCo 800 epochs, R50" in box
    assert mask.split()[:5] == ["mask", "AP", "-", "±", "-"]
    one = summarize(cfg, {"seed0": folders["seed0"]})
    assert one["box_ap"]["mean"] == 26 and one["box_ap"]["std"] is None
    assert one["box_ap"]["published"] is None and one["differences"] == ["splits (1, the row has 5)"]
    assert text(one).splitlines()[-1].startswith("  differs from the published row (LoCo 800 epochs, R50")

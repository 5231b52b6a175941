"""tools/pretrain.py as a user runs it: files, resume, two processes, bad input."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SMALL = ("MODEL.ENCODER", "resnet18", "INPUT.CROP_SIZE", 32, "MODEL.DECODER.HIDDEN_DIM", 32, "MODEL.DEVICE", "cpu",
         "SOLVER.IMS_PER_BATCH", 8, "SOLVER.EPOCHS", 3.0, "SOLVER.WARMUP_EPOCHS", 1.0, "SOLVER.LOG_PERIOD", 1,
         "SOLVER.CHECKPOINT_PERIOD", 2, "DATALOADER.NUM_WORKERS", 0)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
FILES = {"config.yaml", "command.txt", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint", "views.png"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(16):  # six iterations in three epochs
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def whole_run(run_tool, images, tmp_path_factory):
    """A run of six iterations from beginning to end."""
    out = tmp_path_factory.mktemp("whole")
    config = ("--config-file", "configs/pretrain/resnet50_loco.yaml")
    done = run_tool("pretrain.py", *config, "DATASETS.TRAIN", images, "OUTPUT_DIR", out, *SMALL)
    assert done.returncode == 0, done.stderr
    return out, done


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]


def test_files_and_figures_of_a_run(whole_run):
    out, done = whole_run
    assert {p.name for p in out.iterdir()} >= FILES and list(out.glob("events.out.tfevents*"))
    rows = metrics(out)
    assert [row["iteration"] for row in rows] == list(range(6))
    losses = [rows[0][f"loss_{stage}"] for stage in ("res3", "res4", "res5")]  # later rows are medians
    assert rows[0]["total_loss"] == pytest.approx(sum(losses)) and rows[0]["images_per_second"] > 0
    assert {"lr", "eta_seconds", "data_time"} <= rows[-1].keys()
    for word in ("eta:", "iter: 6/6", "loss_res3:", "loss_res5:", "lr:", "images/s"):
        assert word in done.stdout
    assert Image.open(out / "views.png").size[0] > 3 * 128


def test_checkpoint_is_ours_and_loads_safely(whole_run):
    checkpoint = torch.load(whole_run[0] / "model_final.pth", weights_only=True)
    assert checkpoint["format"] == "loco-det pretraining" and checkpoint["iteration"] == 5
    assert "encoder.layer4.1.bn2.weight" in checkpoint["model"]
    assert any(key.startswith("decoders.res3.") for key in checkpoint["model"])


def same_weights(a, b):
    a, b = (torch.load(out / "model_final.pth", weights_only=True) for out in (a, b))
    return all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])


def test_resume_after_a_kill_ends_with_the_same_bits(run_tool, whole_run, images, tmp_path):
    whole = whole_run[0]
    options = ("DATASETS.TRAIN", images, "OUTPUT_DIR", tmp_path, *SMALL)
    for name in ("model_0000003.pth",):  # what a run killed after its fourth iteration leaves behind
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    done = run_tool("pretrain.py", "--config-file", "configs/pretrain/resnet50_loco.yaml", "--resume", *options)
    assert done.returncode == 0, done.stderr
    assert [row["iteration"] for row in metrics(tmp_path)] == [4, 5]
    assert same_weights(whole, tmp_path)


def test_other_seeds_and_rules_give_other_networks(run_tool, whole_run, images, tmp_path):
    done = run_tool("pretrain.py", "--config-file", "configs/pretrain/resnet50_gim.yaml", "DATASETS.TRAIN", images,
                    "OUTPUT_DIR", tmp_path, *SMALL, "SOLVER.EPOCHS", 1.0, "SOLVER.WARMUP_EPOCHS", 0.0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {k for k in metrics(tmp_path)[-1] if k.startswith("loss_")} == {f"loss_res{i}" for i in (2, 3, 4, 5)}


def test_two_processes(run_tool, images, tmp_path):
    done = run_tool("pretrain.py", "--num-gpus", 2, "--dist-url", "auto", "DATASETS.TRAIN", images, "OUTPUT_DIR",
                    tmp_path, *SMALL, "SOLVER.EPOCHS", 1.0, "SOLVER.WARMUP_EPOCHS", 0.0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "on 2 processes" in done.stdout and len(metrics(tmp_path)) == 2


def test_two_processes_without_units(run_tool, images, tmp_path):
    done = run_tool("pretrain.py", "--num-gpus", 2, "--dist-url", "auto", "DATASETS.TRAIN", images, "OUTPUT_DIR",
                    tmp_path, *SMALL, "MODEL.UNITS", "[]")  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert model["encoder.bn1.num_batches_tracked"] == 100  # however small the folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATASETS.TRAIN", "/nowhere"], "/nowhere: no such folder of images"),
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LRR"),
        (["SOLVER.EPOCHS", "many"], "SOLVER.EPOCHS"),
        (["--config-file", "/nowhere.yaml"], "/nowhere.yaml"),
        (["MODEL.ENCODER", "resnet7"], "unknown encoder 'resnet7'"),
        (["MODEL.UNITS", "[['res2','res4']]"], "not a run of consecutive stages"),
        (["MODEL.UNITS", "[1, 2]"], "must be a list of lists of stage names"),
        (["SOLVER.LOG_PERIOD", "0"], "SOLVER.LOG_PERIOD is 0, but must be at least 1"),
        (["LOSS.TEMPERATURE", "0"], "LOSS.TEMPERATURE is 0.0, but must be above 0"),
        (["INPUT.CROP_AREA", "[0.5]"], "INPUT.CROP_AREA is [0.5], but must be two numbers"),
        (["SOLVER.IMS_PER_BATCH", "64"], "fewer than SOLVER.IMS_PER_BATCH 64"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_bad_input_gets_one_line(call_tool, images, tmp_path, capsys, arguments, message):
    flags, pairs = (arguments, []) if arguments[0].startswith("--") else ([], arguments)
    small = ["DATASETS.TRAIN", images, "OUTPUT_DIR", tmp_path / "out", *SMALL]
    assert call_tool("pretrain", *flags, *small, *pairs) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("out/*.pth"))


def test_bad_input_from_the_shell(run_tool, tmp_path):
    options = ("DATASETS.TRAIN", tmp_path, "OUTPUT_DIR", tmp_path / "out")
    done = run_tool("pretrain.py", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "no images" in done.stderr
    done = run_tool("pretrain.py", "--num-gpus", 2, "--dist-url", "auto", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "no images" in done.stderr
    assert run_tool("pretrain.py", "--eval-only").returncode == 2


def test_unreadable_images_are_named_and_too_many_stop_the_run(run_tool, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "07.png").write_bytes((images / "07.png").read_bytes()[:500])
    options = ["DATASETS.TRAIN", folder, "OUTPUT_DIR", tmp_path / "out", *SMALL]
    done = run_tool("pretrain.py", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    for word in ("1 of 16 images are unreadable", "07.png", "DATASETS.MAX_UNREADABLE"):
        assert word in done.stderr
    done = run_tool("pretrain.py", *options, "DATASETS.MAX_UNREADABLE", 0.1)
    assert done.returncode == 0
    assert done.stdout.count("unreadable image left out (1 so far") == 1  # however often it comes up


def test_exploding_loss_names_the_unit_and_keeps_the_last_good_checkpoint(run_tool, images, tmp_path):
    done = run_tool("pretrain.py", "DATASETS.TRAIN", images, "OUTPUT_DIR", tmp_path, *SMALL, "SOLVER.OPTIMIZER", "SGD",
                    "SOLVER.BASE_LR", 1e30, "SOLVER.CHECKPOINT_PERIOD", 1)  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "loss_res" in done.stderr and "at iteration" in done.stderr
    last = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=True)
    assert all(torch.isfinite(v).all() for v in last["model"].values())


def test_ctrl_c(images, tmp_path):
    command = [sys.executable, "tools/pretrain.py", "DATASETS.TRAIN", images, "OUTPUT_DIR", tmp_path, *SMALL]
    command = [*map(str, command), "SOLVER.EPOCHS", "1000"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (tmp_path / "model_0000003.pth").exists():
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")
    assert not list(tmp_path.glob("*.tmp*"))
    torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=True)

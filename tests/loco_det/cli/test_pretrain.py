"""tools/pretrain.py as a user runs it: files, interruptions of every kind, several processes, bad input."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from checkout import ROOT
from child_processes import SIGNALLED, TORCHRUN, child_environment
from noise import write_noise_images
from PIL import Image
from run_files import metrics

from loco_det.cli.common.arguments import argument_parser
from loco_det.cli.common.errors import one_line_errors
from loco_det.cli.common.launch import launch
from pretrain.engine.precision import bfloat16_support

SMALL = ("MODEL.ENCODER", "resnet18x0.25", "INPUT.CROP_SIZE", 32, "MODEL.DECODER.HIDDEN_DIM", 32, "MODEL.DEVICE", "cpu",
         "SOLVER.IMS_PER_BATCH", 8, "SOLVER.EPOCHS", 3.0, "SOLVER.WARMUP_EPOCHS", 1.0, "SOLVER.LOG_PERIOD", 1,
         "SOLVER.CHECKPOINT_PERIOD", 2, "DATALOADER.NUM_WORKERS", 0)  # fmt: skip
FILES = {"config.yaml", "command.txt", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint", "views.png"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_noise_images(tmp_path_factory.mktemp("images"), 16)  # six iterations in three epochs


@pytest.fixture(scope="module")
def whole_run(run_tool, images, tmp_path_factory):
    """A run of six iterations from beginning to end."""
    out = tmp_path_factory.mktemp("whole")
    config = ("--config-file", "configs/pretrain/imagenet/resnet50_loco_800ep.yaml")
    done = run_tool("pretrain.py", *config, "DATASETS.TRAIN", images, "OUTPUT_DIR", out, *SMALL)
    assert done.returncode == 0, done.stderr
    return out, done


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
    tool = os.path.join(ROOT, "tools", "convert_to_d2.py")
    assert done.stdout.endswith(f"next: python {tool} {out / 'model_final.pth'} {out / 'backbone.pkl'}\n")


def test_auto_is_resolved_in_the_runs_config(call_tool, images, tmp_path):
    options = ["DATASETS.TRAIN", images, "OUTPUT_DIR", tmp_path, *SMALL, "INPUT.CROP_SIZE", 64]
    one_step = ["SOLVER.EPOCHS", 1.0, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.WARMUP_EPOCHS", 0.0]
    assert call_tool("pretrain", *options, *one_step, "SOLVER.AMP.ENABLED", "auto") == 0
    fast, why = bfloat16_support("cpu")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["SOLVER"]["AMP"]["ENABLED"] is fast
    assert f"auto: {'bfloat16' if fast else 'float32'}, because {why}" in (tmp_path / "log.txt").read_text()


def test_checkpoint_is_ours_and_loads_safely(whole_run):
    checkpoint = torch.load(whole_run[0] / "model_final.pth", weights_only=True)
    assert checkpoint["format"] == "loco-det pretraining" and checkpoint["iteration"] == 5
    assert "encoder.layer4.1.bn2.weight" in checkpoint["model"]
    assert any(key.startswith("decoders.res3.") for key in checkpoint["model"])


def test_resuming_a_finished_run_says_so(call_tool, whole_run, images):
    out = whole_run[0]
    before = {p: p.stat().st_mtime_ns for p in out.glob("*.pth")}
    config = ("--config-file", ROOT / "configs/pretrain/imagenet/resnet50_loco_800ep.yaml")
    assert call_tool("pretrain", *config, "--resume", "DATASETS.TRAIN", images, "OUTPUT_DIR", out, *SMALL) == 0
    assert "all 6 iterations are done, there is nothing to resume" in (out / "log.txt").read_text()
    assert {p: p.stat().st_mtime_ns for p in out.glob("*.pth")} == before


def test_a_finished_run_is_not_overwritten(call_tool, whole_run, images, capsys):
    out = whole_run[0]
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    config = ("--config-file", ROOT / "configs/pretrain/imagenet/resnet50_gim_800ep.yaml")
    assert call_tool("pretrain", *config, "DATASETS.TRAIN", images, "OUTPUT_DIR", out, *SMALL) == 2
    assert f"error: {out} holds a finished run, whose model_final.pth would be lost" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before


# 20 iterations
LONG = (*SMALL, *"SOLVER.EPOCHS 10.0 SOLVER.CHECKPOINT_PERIOD 8 SOLVER.CHECKPOINTS_KEPT 2 MODEL.NOISE 0.1".split())


class Chain:
    """A run in one go; and the same run when it is killed and resumed, on one process also terminated between."""

    def __init__(self, run_tool, images, folder, processes):
        self.run_tool, self.images, self.processes = run_tool, images, processes
        self.whole, self.broken = folder / "whole", folder / "broken"
        tool, signalled, last = ROOT / "tools/pretrain.py", folder / "signalled.py", processes - 1
        signalled.write_text(SIGNALLED.format(module="pretrain.engine.trainer", trainer="Trainer", tool="pretrain.py"))
        self.in_one_go = self.run(self.whole, tool)
        self.killed = self.run(self.broken, signalled, "KILL", 11, last)
        if processes == 1:  # for two, tests/pretrain/processes/test_distributed.py
            self.terminated = self.run(self.broken, signalled, "TERM", 14, last, "--resume", workers=2)
        self.resumed = self.run(self.broken, tool, "--resume", forked=False)  # another seed of hashes

    def run(self, out, *command, workers=0, forked=True):
        command += ("DATASETS.TRAIN", self.images, "OUTPUT_DIR", out, *LONG, "DATALOADER.NUM_WORKERS", workers)
        if self.processes == 1 and forked:
            return self.run_tool(*command, OMP_NUM_THREADS="1")
        launcher = TORCHRUN if self.processes == 2 else ()
        command = [sys.executable, *map(str, (*launcher, *command))]
        env = child_environment(OMP_NUM_THREADS="1")
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


ONE = pytest.param(1, id="one process", marks=pytest.mark.slow)  # tests/faults kill one process, too


@pytest.fixture(scope="module", params=[ONE, pytest.param(2, id="two processes of torchrun")])
def chain(request, run_tool, images, tmp_path_factory):
    return Chain(run_tool, images, tmp_path_factory.mktemp("chain"), request.param)


def same(a, b):
    """Whether two checkpoints, or parts of them, hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_interrupted_runs_end_with_the_same_bits(chain):
    for done in (chain.in_one_go, chain.resumed):
        assert done.returncode == 0, done.stderr
    assert chain.killed.returncode != 0
    iterations = [row["iteration"] for row in metrics(chain.broken) if "total_loss" in row]
    assert iterations[:11] == [*range(11)] and sorted(iterations[11:]) == [*range(8, 20)]
    a, b = (torch.load(out / "model_final.pth", weights_only=True) for out in (chain.whole, chain.broken))
    assert a["iteration"] == 19 and {"model", "optimizer", "scheduler"} <= a.keys()
    assert all(same(a[key], b[key]) for key in ("model", "optimizer", "scheduler", "iteration"))


@pytest.mark.parametrize("chain", [1], ids=["one process"], indirect=True)
def test_sigterm_writes_a_checkpoint_and_says_so(chain):
    done = chain.terminated
    assert done.returncode == 0 and "rror" not in done.stderr, done.stderr
    assert done.stdout.count("SIGTERM: checkpoint written after iteration 14; go on with --resume") == 1
    # of those after iterations 7, 14 and 15 the last two
    assert {p.name for p in chain.broken.glob("*.pth")} == {"model_0000014.pth", "model_0000015.pth", "model_final.pth"}


def test_the_batch_and_the_learning_rate_are_those_of_the_config(chain):
    local = 8 // chain.processes
    assert (
        f"20 iterations, {chain.processes} processes; images per step: 8, per process: {local}, per chunk: {local}; "
        "peak learning rate: 0.009375 = 0.3 * 8 / 256"
    ) in chain.in_one_go.stdout
    assert max(row["lr"] for row in metrics(chain.whole)) == pytest.approx(0.009375)


def test_other_seeds_and_rules_give_other_networks(run_tool, whole_run, images, tmp_path):
    done = run_tool("pretrain.py", "--config-file", "configs/pretrain/imagenet/resnet50_gim_800ep.yaml",
                    "DATASETS.TRAIN", images, "OUTPUT_DIR", tmp_path, *SMALL, "SOLVER.EPOCHS", 1.0,
                    "SOLVER.WARMUP_EPOCHS", 0.0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {k for k in metrics(tmp_path)[-1] if k.startswith("loss_")} == {f"loss_res{i}" for i in (2, 3, 4, 5)}


def test_sigterm_to_two_spawned_processes(images, tmp_path):
    command = [sys.executable, "tools/pretrain.py", "--num-gpus", 2, "DATASETS.TRAIN", images, "OUTPUT_DIR", tmp_path]
    command = [*map(str, (*command, *SMALL)), "SOLVER.EPOCHS", "1000"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "last_checkpoint").exists():
            time.sleep(0.1)
            assert process.poll() is None
        process.terminate()
        output, error = process.communicate(timeout=100)
    finally:
        process.kill()  # its children end with it
    assert (process.returncode, error) == (0, "")
    assert " 2 processes" in output and output.count("SIGTERM: checkpoint written after iteration") == 1
    last = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=True)
    assert last["iteration"] == metrics(tmp_path)[-1]["iteration"]


def test_two_processes_without_units(run_tool, images, tmp_path):
    done = run_tool("pretrain.py", "--num-gpus", 2, "DATASETS.TRAIN", images, "OUTPUT_DIR",
                    tmp_path, *SMALL, "MODEL.UNITS", "[]")  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert model["encoder.bn1.num_batches_tracked"] == 100  # however small the folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATASETS.TRAIN", "/nowhere"], "DATASETS.TRAIN /nowhere: no such folder of images"),
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LRR"),
        (["SOLVER.EPOCHS", "many"], "SOLVER.EPOCHS"),
        (["SOLVER.AMP.ENABLED", "maybe"], "SOLVER.AMP.ENABLED is maybe, but must be True, False or auto"),
        (["--config-file", "/nowhere.yaml"], "/nowhere.yaml"),
        (["MODEL.ENCODER", "resnet7"], "unknown encoder 'resnet7'"),
        (["MODEL.UNITS", "[['res2','res4']]"], "not a run of consecutive stages"),
        (["MODEL.UNITS", "[1, 2]"], "must be a list of lists of stage names"),
        (["SOLVER.LOG_PERIOD", "0"], "SOLVER.LOG_PERIOD is 0, but must be at least 1"),
        (["LOSS.TEMPERATURE", "0"], "LOSS.TEMPERATURE is 0.0, but must be above 0"),
        (["INPUT.CROP_AREA", "[0.5, 3.0]"], "a crop cannot be more than 1"),
        (["INPUT.JITTER", "[0.8, 0.8, 0.8, 0.8]"], "hue, the last, is at most 0.5"),
        (["INPUT.BLUR_PROB", "[0.5]"], "INPUT.BLUR_PROB is [0.5], but must be 2 numbers from 0 to 1"),
        (["MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"], "deviations above 0"),
        (["MODEL.PIXEL_MEAN", "[0.0]"], "must be three numbers"),
        (["SOLVER.MOMENTUM", "1.5"], "SOLVER.MOMENTUM is 1.5, but must be from 0 to 1"),
        (["SOLVER.IMS_PER_BATCH", "1"], "SOLVER.IMS_PER_BATCH is 1, but must be at least 2"),
        (["MODEL.SHARED_GRADIENT", "lower"], "choose all or upper"),
        (["LOSS.NAME", "triplet"], "choose info_nce or barlow_twins or vicreg"),
        (["LOSS.VICREG", "[25.0, 1.0]"], "LOSS.VICREG is [25.0, 1.0], but must be three numbers"),
        (["LOSS.VICREG", "[0.0, 0.0, 0.0]"], "none below 0 and one above"),
        (["MODEL.DECODER.POOL_FEATURES", "100"], "MODEL.DECODER.POOL_FEATURES 100 is no multiple of a map's"),
        (["MODEL.DECODER.POOL_FEATURES", "2048"], "a map of 2 x 2 pixels has no"),
        (["SOLVER.SEQUENTIAL", "True"], "whose gradients it needs at once: only units that do not overlap"),
        (["MODEL.DECODER.TIE", "0.1"], "set MODEL.DECODER.STAGES"),
        (["MODEL.RECOMPUTE", "['res9']"], "'res9' is not a stage"),
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
    done = run_tool("pretrain.py", "--num-gpus", 2, *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "no images" in done.stderr
    assert run_tool("pretrain.py", "--eval-only").returncode == 2


CHILD = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}  # as torchrun sets them


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--num-gpus", "2"], CHILD, "process 1: error: torchrun says how many processes there are: leave out"),
        (["--num-machines", "2"], {}, "error: --num-machines above 1 needs --dist-url tcp://HOST:PORT"),
    ],
)
def test_launches_that_cannot_be(monkeypatch, capsys, arguments, environment, message):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as exit, one_line_errors():
        launch(print, argument_parser("").parse_args(arguments))
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.startswith(message) and error.count("\n") == 1


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

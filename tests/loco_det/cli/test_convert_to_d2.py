"""tools/convert_to_d2.py as a user runs it: what it prints, its exit codes, and what it leaves behind."""

import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from checkout import ROOT
from child_processes import child_environment
from detectron2.config import get_cfg
from pickles import Calls

from loco_det.cli import convert_to_d2
from loco_det.config import add_loco_config
from loco_det.convert import LAYOUTS, TIMM_LAYOUTS, writing
from pretrain.encoders import build_encoder
from pretrain.files import atomic as files

TOOL = ROOT / "tools" / "convert_to_d2.py"
THIN = "resnet50x0.125"  # of 1.5 MB
STAGES = ["res2", "res3", "res4", "res5"]


def call(*arguments):
    """The exit code of a command line, in this process."""
    return convert_to_d2.run(convert_to_d2.parse([str(a) for a in arguments]))


def weights(arch=THIN, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(arch).state_dict()


@pytest.fixture
def checkpoint(tmp_path):
    """Torchvision's layout, alone in a folder."""
    (tmp_path / "in").mkdir()
    torch.save(weights(), tmp_path / "in" / "in.pth")
    return tmp_path / "in" / "in.pth"


@pytest.fixture
def moco(tmp_path):
    """Two encoders: the trained one and its moving average."""
    state_dict = {"module.queue": torch.ones(2, 3)}
    for seed, name in enumerate(("encoder_q", "encoder_k")):
        state_dict |= {f"module.{name}.{key}": tensor for key, tensor in weights(seed=seed).items()}
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": state_dict} | {"arch": None}, tmp_path / "moco.pth.tar")
    return tmp_path / "moco.pth.tar"


def run(*args, **kwargs):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TOOL), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, **kwargs)


def refused(capsys, checkpoint, out, code, *options):
    """Run in this process; returns the one line on stderr."""
    before = listing(out.parent) if out.parent.is_dir() else None
    assert call(checkpoint, out, *options) == code
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", stderr), stderr
    assert (listing(out.parent) if out.parent.is_dir() else None) == before
    return stderr


def listing(folder):
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


def usage(capsys, *args):
    """argparse's refusal: the usage, then one line."""
    with pytest.raises(SystemExit) as caught:
        call(*args)
    stderr = capsys.readouterr().err
    assert caught.value.code == 2 and stderr.startswith("usage:")
    return stderr.splitlines()[-1]


def config_of(path):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def test_a_user_converts_a_checkpoint(tmp_path):
    model = {f"encoder.{name}": tensor for name, tensor in weights("resnet18").items()}
    model |= {"decoders.res3.weight": torch.zeros(1), "decoders.res4.weight": torch.zeros(1)}
    content = {"format": "loco-det pretraining", "encoder": "resnet18", "iteration": 3, "model": model}
    torch.save(content, tmp_path / "model_final.pth")
    result = run("model_final.pth", "backbone.pkl", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "source: resnet18 at 'model/encoder.', laid out as loco-det (ours (tools/pretrain.py)); "
        "entries dropped: 2 of decoders"
    )
    assert re.findall(r"^  (res\d)  eval mode \S+ \(\S+\)  training mode", result.stdout, re.M) == STAGES
    assert "wrote backbone.pkl: resnet18, 120 arrays, 44.8 MB, verified" in lines
    assert sorted(os.listdir(tmp_path)) == ["backbone.pkl", "backbone.yaml", "model_final.pth"]
    printed = result.stdout.split("config that these weights need, written to backbone.yaml:\n")[1]
    written = (tmp_path / "backbone.yaml").read_text()
    assert yaml.safe_load(printed) == yaml.safe_load(written)
    cfg = config_of(tmp_path / "backbone.yaml")
    assert cfg.MODEL.WEIGHTS == str(tmp_path / "backbone.pkl") and cfg.INPUT.FORMAT == "RGB"
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS) == (18, 64)
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53] and cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    comments = dict(re.findall(r"^# (\w+): (.*)$", written, re.M))
    assert json.loads(comments["source"]) == "model_final.pth" and json.loads(comments["arch"]) == "resnet18"
    assert re.fullmatch(r"[0-9a-f]{64}", json.loads(comments["sha256"]))


@pytest.mark.parametrize("arch", [THIN, "presnet50"])
def test_the_config_builds_upon_another_and_can_be_built_upon(tmp_path, arch):
    torch.save(weights(arch), tmp_path / "in.pth")
    base, out = ROOT / "configs" / "demo_coco_loco_frozen.yaml", tmp_path / "out.pkl"
    assert call(tmp_path / "in.pth", out, "--base", base) == 0
    with_base, alone = config_of(tmp_path / "out.yaml"), config_of(base)
    assert with_base.MODEL.WEIGHTS == str(out)
    assert with_base.SOLVER == alone.SOLVER and with_base.DATASETS == alone.DATASETS
    assert with_base.MODEL.ROI_HEADS == alone.MODEL.ROI_HEADS
    # The user's own config, with ours as the last of several
    assert call(tmp_path / "in.pth", out) == 0
    (tmp_path / "mine.yaml").write_text(f"_BASE_: [{base}, out.yaml]\nSOLVER: {{MAX_ITER: 7}}\n")
    mine = config_of(tmp_path / "mine.yaml")
    assert mine.MODEL == with_base.MODEL and mine.SOLVER.MAX_ITER == 7
    if arch == THIN:
        assert (mine.MODEL.RESNETS.DEPTH, mine.MODEL.RESNETS.RES2_OUT_CHANNELS) == (50, 32)
    else:
        assert mine.MODEL.ENCODER == arch and mine.MODEL.BACKBONE.NAME == "build_encoder_fpn_backbone"


def test_a_configs_own_path_is_relative_to_it(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base: a b.yaml").write_text("SOLVER: {MAX_ITER: 7}\n")
    (tmp_path / "out").mkdir()
    assert call(checkpoint, "out/o.pkl", "--base", "base: a b.yaml") == 0
    (tmp_path / "out").rename(tmp_path / "moved")
    assert config_of(tmp_path / "moved" / "o.yaml").SOLVER.MAX_ITER == 7


def test_configs_of_others_are_not_replaced_and_our_own_are(capsys, checkpoint, tmp_path):
    out = tmp_path / "out" / "o.pkl"
    out.parent.mkdir()
    out.with_suffix(".yaml").write_text("MODEL: {WEIGHTS: mine}\n")
    assert "o.yaml: would be replaced" in refused(capsys, checkpoint, out, 2)
    out.with_suffix(".yaml").unlink()
    assert call(checkpoint, out) == 0
    first = listing(out.parent)
    torch.save(weights(seed=1), checkpoint)
    assert call(checkpoint, out) == 0
    second = listing(out.parent)
    assert first.keys() == second.keys() and all(first[name] != second[name] for name in first)


def test_check_only_leaves_nothing(capsys, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    touched = checkpoint.parent.stat().st_mtime_ns
    assert call(checkpoint, "--check-only") == 0
    printed = capsys.readouterr().out
    assert f"checked, nothing written: {THIN}, 318 arrays" in printed
    assert yaml.safe_load(printed.split("config that these weights need:\n")[1])["MODEL"]["WEIGHTS"] == ""
    monkeypatch.setattr(writing.os, "fsync", lambda _: 1 / 0)  # whatever goes wrong
    with pytest.raises(ZeroDivisionError):
        call(checkpoint, "--check-only")
    assert os.listdir(tmp_path / "temp") == []
    assert checkpoint.parent.stat().st_mtime_ns == touched  # nothing was made there: it might be read-only


def test_json(capsys, checkpoint, tmp_path):
    out = tmp_path / "o.pkl"
    assert call(checkpoint, out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["output"], found["config_file"]) == (str(out), str(tmp_path / "o.yaml"))
    assert found["size"] == out.stat().st_size and found["entries"] == 318
    assert found["config"] == yaml.safe_load((tmp_path / "o.yaml").read_text())
    source = found["source"]
    assert source["arch"] == THIN and source["layout"] == "torchvision" and source["path"] == str(checkpoint)
    assert source["conventions"]["format"] == "RGB" and source["dropped"] == {} and source["notes"] == []
    for mode in ("eval", "train"):
        assert list(found["differences"][mode]) == STAGES
        assert all(stage["relative"] <= 1e-5 for stage in found["differences"][mode].values())
    with open(out, "rb") as file:
        assert pickle.load(file)["sha256"] == found["sha256"]
    assert call(checkpoint, "--check-only", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["output"] is None and found["config_file"] is None and found["differences"]["train"]["res5"]


def test_list_sources(capsys):
    assert call("--list-sources") == 0
    text = capsys.readouterr().out
    assert call("--list-sources", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(text.splitlines()) == len(rows) == len(LAYOUTS) + len(TIMM_LAYOUTS)
    for line, row in zip(text.splitlines(), rows, strict=True):
        assert set(row) == {"source", "project", "rule"} and all(part in line for part in row.values())


def test_which_of_two_networks(capsys, moco, tmp_path):
    def stem(*options):
        assert call(moco, tmp_path / "o.pkl", *options) == 0
        with open(tmp_path / "o.pkl", "rb") as file:
            return torch.from_numpy(pickle.load(file)["model"]["stem.conv1.weight"])

    trained, average = (weights(seed=seed)["conv1.weight"] for seed in (0, 1))
    assert torch.equal(stem(), trained) and "--ema takes that one" in capsys.readouterr().out
    assert torch.equal(stem("--source", "moco", "--arch", THIN), trained)
    assert torch.equal(stem("--ema"), average) and "note:" not in capsys.readouterr().out.split("--ema takes")[-1]
    assert torch.equal(stem("--prefix", "encoder_k."), average)
    out = tmp_path / "o.pkl"
    capsys.readouterr()
    assert "not laid out as simsiam" in refused(capsys, moco, out, 1, "--source", "simsiam")
    assert f"this is a {THIN}, not the resnet50" in refused(capsys, moco, out, 1, "--arch", "resnet50")
    assert "0 encoders with the prefix 'net.'" in refused(capsys, moco, out, 1, "--prefix", "net.")


def test_a_moving_average_that_is_not_there(capsys, checkpoint, tmp_path):
    assert "no moving average" in refused(capsys, checkpoint, tmp_path / "o.pkl", 1, "--ema")


def test_a_config_file_is_for_detectron2s_own(capsys, checkpoint, tmp_path):
    out = tmp_path / "o.pkl"
    (tmp_path / "run.yaml").write_text("MODEL: {RESNETS: {STRIDE_IN_1X1: false}}\n")
    line = refused(capsys, checkpoint, out, 1, "--config-file", tmp_path / "run.yaml")
    assert "--config-file is for checkpoints of Detectron2 only" in line
    assert call(checkpoint, out) == 0
    capsys.readouterr()
    for text, code, message in (
        (None, 2, "no such"),
        ("{", 1, "is no config that can be read"),
        ("- 1", 1, "config"),
        ("MODEL: {PIXEL_MEAN: [a, b, c]}", 1, "not three numbers"),
    ):
        (tmp_path / "run.yaml").unlink(missing_ok=True)
        if text:
            (tmp_path / "run.yaml").write_text(text)
        line = refused(capsys, out, tmp_path / "again.pkl", code, "--config-file", tmp_path / "run.yaml")
        assert message in line


def test_help_has_examples_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        call("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "python tools/convert_to_d2.py" in text and "exit code" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give a checkpoint, and either OUT.pkl or --check-only"),
        (["a.pth"], "give a checkpoint, and either OUT.pkl or --check-only"),
        (["a.pth", "b.pkl", "--check-only"], "give a checkpoint, and either OUT.pkl or --check-only"),
        (["a.pth", "b.pkl", "--source", "mocov9"], "invalid choice: 'mocov9'"),
        (["a.pth", "b.pkl", "--prefix", "x.", "--ema"], "leave out --source and --ema"),
        (["a.pth", "b.pkl", "--prefix", "", "--source", "moco"], "leave out --source and --ema"),
        (["a.pth", "b.pkl", "c.pkl"], "unrecognized arguments: c.pkl"),
    ],
)
def test_bad_usage_is_2(capsys, args, message):
    assert message in usage(capsys, *args)


def test_output_names_that_cannot_be(capsys, checkpoint, tmp_path):
    (tmp_path / "in.pkl").write_bytes(checkpoint.read_bytes())
    (tmp_path / "folder.pkl").mkdir()
    (tmp_path / "taken.yaml").mkdir()
    (tmp_path / "link.pkl").symlink_to("in.pkl")
    for name, message in (
        ("out.pth", "must end in .pkl"),
        ("no/out.pkl", "create it first"),
        ("folder.pkl", "a folder"),
        ("in.pkl", "the checkpoint itself"),
        ("link.pkl", "the checkpoint itself"),
        ("what?.pkl", "as a URL"),
        ("taken.pkl", "taken.yaml: would be replaced"),
    ):
        assert message in refused(capsys, tmp_path / "in.pkl", tmp_path / name, 2)
    line = refused(capsys, checkpoint, tmp_path / "o.pkl", 2, "--base", tmp_path / "nowhere.yaml")
    assert "nowhere.yaml: no such config file" in line
    assert "no such file" in refused(capsys, tmp_path / "nowhere.pth", tmp_path / "o.pkl", 2)


def test_a_file_that_brings_code(capsys, tmp_path):
    path, trap = tmp_path / "in.pth", tmp_path / "trap"
    torch.save({"state_dict": weights(), "extra": Calls(os.mkdir, str(trap))}, path)
    line = refused(capsys, path, tmp_path / "o.pkl", 1)
    assert line.startswith(f"error: {path}: holds more than tensors (posix.mkdir)") and not trap.exists()
    assert call(path, "--check-only", "--unsafe-load") == 0 and trap.exists()


def test_values_that_are_no_numbers(capsys, tmp_path):
    for value in (float("nan"), float("inf")):
        state_dict = weights()
        state_dict["layer2.0.conv1.weight"].view(-1)[5] = value
        torch.save(state_dict, tmp_path / "in.pth")
        line = refused(capsys, tmp_path / "in.pth", tmp_path / "o.pkl", 1)
        assert "NaN or infinite values in 1 tensors (layer2.0.conv1.weight)" in line


def test_more_values_by_the_shape_than_in_the_file(capsys, tmp_path):
    state_dict = weights()
    state_dict["layer4.0.conv2.weight"] = torch.zeros(1).expand(state_dict["layer4.0.conv2.weight"].shape)
    torch.save(state_dict, tmp_path / "in.pth")
    line = refused(capsys, tmp_path / "in.pth", tmp_path / "o.pkl", 1)
    assert "layer4.0.conv2.weight has fewer values than its shape" in line


def older(folder):
    """What an earlier conversion left."""
    (folder / "o.pkl").write_bytes(b"older")
    (folder / "o.yaml").write_bytes(b"# Written by loco-det's converter, earlier\n")
    return folder / "o.pkl"


def test_a_failed_verification_keeps_the_old_files(capsys, checkpoint, tmp_path, monkeypatch):
    out, dump = older(tmp_path), pickle.dump

    def flipped(content, file):
        content["model"]["stem.conv1.weight"] = content["model"]["stem.conv1.weight"][:, ::-1].copy()
        dump(content, file)

    monkeypatch.setattr(pickle, "dump", flipped)
    line = refused(capsys, checkpoint, out, 1)
    assert re.search(r"in\.pth: res2 differs from the source network by 0\.\d+ relative .*; nothing was written", line)


@pytest.mark.parametrize("name", ["o.pkl", "o.yaml"])
def test_a_folder_without_permission(capsys, checkpoint, tmp_path, monkeypatch, name):
    out = older(tmp_path)

    def denied(path, mode="r"):  # permissions do not stop root, so the test does
        if mode == "xb" and Path(path).suffix == Path(name).suffix:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode)

    monkeypatch.setattr(files, "open", denied, raising=False)
    assert f"{name}: Permission denied" in refused(capsys, checkpoint, out, 1)


@pytest.mark.parametrize("first_time", [True, False])
@pytest.mark.parametrize("name", ["o.pkl", "o.yaml"])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_both_files_are_replaced_or_none(capsys, checkpoint, tmp_path, monkeypatch, name, error, first_time):
    out, replace = tmp_path / "o.pkl" if first_time else older(tmp_path), os.replace

    def fails(source, path):
        if Path(path).name == name:
            raise error
        replace(source, path)

    monkeypatch.setattr(writing.os, "replace", fails)
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    line = refused(capsys, checkpoint, out, code)
    assert "interrupted" in line if code == 130 else f"{name}: Input/output error" in line


def test_a_full_disk(capsys, checkpoint, tmp_path):
    out, before = older(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, name in ((500_000, "o.pkl"), (10, "o.pkl")):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # bytes a file may have
            line = refused(capsys, checkpoint, out, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert re.search(rf"{name}: File too large", line)


# The command line, but for a verification that takes as long as it is given
_SLOW = """
import sys, time, pathlib, runpy
from loco_det.convert import conversion

def verify(*args):
    pathlib.Path(sys.argv[1] + ".reached").touch()
    time.sleep(60)

conversion.verify = verify
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_ctrl_c(checkpoint, tmp_path):
    out = older(tmp_path)
    before = listing(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", _SLOW, str(TOOL), str(checkpoint), str(out)]
    env = child_environment()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        reached = Path(f"{checkpoint}.reached")
        for _ in range(600):
            if reached.exists():
                break
            time.sleep(0.1)
        assert len(listing(tmp_path)) > len(before)  # in the middle of it
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, stdout, stderr) == (130, "", "error: interrupted, nothing was written\n")
    assert listing(tmp_path) == before


# --- names in a file are data ----------------------------------------------------------------------------------------

EVIL = "\x1b[31m\r\n\x07\u202e\u2028\x9b\udc80"
SPELLED = r"\x1b[31m\r\n\x07\u202e\u2028\x9b\udc80"


def test_names_beside_the_encoder_in_what_is_printed_and_written(capsys, tmp_path):
    path, out = (
        tmp_path / "a\x1b[31m\r\n\u202eb.pth",
        tmp_path / "o\x1b[31m\u202e\udc80.pkl",
    )  # a URL has no line breaks
    torch.save({EVIL: {**{f"encoder_q.{n}": t for n, t in weights().items()}, EVIL: torch.zeros(1)}}, path)
    assert call(path, out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines) and f"1 of {SPELLED}" in lines[0]
    text = out.with_suffix(".yaml").read_text()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert yaml.safe_load(text)["MODEL"]["WEIGHTS"] == str(out)  # and the rest is as it was
    assert call(path, "--check-only", "--json") == 0
    assert json.loads(capsys.readouterr().out)["source"]["location"] == f"{EVIL}/encoder_q."


@pytest.mark.parametrize(
    "content",
    [
        {f"{EVIL}.{n}": t for n, t in weights().items()},  # no layout: a command with the prefix
        {EVIL: {**weights(), f"layer2{EVIL}": torch.zeros(1)}, "arch": "resnet50"},
        {"state_dict": {**weights(), EVIL: torch.zeros(1)}},
        {"state_dict": {**weights(), f"layer1.0.se.{EVIL}": torch.zeros(1)}},
        {"state_dict": weights(), "arch": EVIL} | {"arch": f"resnetblur50{EVIL}"},
        {f"flat_param{EVIL}": torch.zeros(1)},
        {EVIL: torch.zeros(1), f"module.{EVIL}": torch.zeros(1)},
        {f"{EVIL}x": torch.zeros(1)},
        {EVIL: 1},
        {"resnet.encoder.stages.0.layers.0.layer.0.convolution.weight": torch.zeros(1), f"resnet.embedder.{EVIL}": 0}
        | {f"resnet.embedder.embedder.0.{EVIL}": torch.zeros(1)},
    ],
)
def test_names_in_errors(capsys, tmp_path, content):
    path = tmp_path / "in\x1b[31m\n.pth"
    torch.save(content, path)
    line = refused(capsys, path, tmp_path / "o.pkl", 1)
    assert line.rstrip("\n").isprintable() and r"in\x1b[31m\n.pth: " in line and "damaged" not in line


def test_names_in_errors_of_the_command_line(capsys, tmp_path):
    line = refused(capsys, tmp_path / f"no{EVIL}.pth", tmp_path / "o.pkl", 2)
    assert line.rstrip("\n").isprintable() and f"no{SPELLED}.pth: no such file" in line


def test_a_path_that_is_not_utf_8(capsys, checkpoint, tmp_path):
    checkpoint = checkpoint.rename(tmp_path / "Z\udcfcrich.pth")  # Latin-1
    assert "whose path is not UTF-8" in refused(capsys, checkpoint, tmp_path / "o.pkl", 1)


def test_names_in_an_archive(capsys, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x\x1b[31m\n\u202e.pth", b"")
    line = refused(capsys, tmp_path / "a.zip", tmp_path / "o.pkl", 1)
    assert line.rstrip("\n").isprintable() and r"'x\x1b[31m\n\u202e.pth'" in line


def test_a_terminal_that_has_no_such_letters(tmp_path):
    torch.save({"encoder_q": 0, "日本": {**{f"encoder_q.{n}": t for n, t in weights().items()}, "é": torch.zeros(1)}},
               tmp_path / "日本.pth")  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, str(TOOL), str(tmp_path / "日本.pth"), str(tmp_path / "日.pkl")]
    done = subprocess.run(command, capture_output=True, env=env, timeout=120)
    assert done.returncode == 0 and rb"1 of \xe9" in done.stdout and done.stderr == b""

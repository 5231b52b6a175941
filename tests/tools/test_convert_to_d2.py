"""tools/convert_to_d2.py as a user runs it: what it prints, its exit codes, and what it leaves behind."""

import argparse
import importlib.util
import os
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from detectron2.config import get_cfg

TOOL = Path(__file__).parents[2] / "tools" / "convert_to_d2.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("convert_to_d2", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(name="resnet18", **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(torchvision.models, name)(weights=None, **kwargs).state_dict()


def shapes_only(name, **kwargs):
    """A state dict of zeros, for the refusals that come before any value is looked at."""
    with torch.device("meta"):
        state_dict = getattr(torchvision.models, name)(weights=None, **kwargs).state_dict()
    return {key: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for key, tensor in state_dict.items()}


@pytest.fixture(scope="module")
def r18_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "r18.pth"
    torch.save(weights(), path)
    return path.read_bytes()


def run(*args, **kwargs):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TOOL), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, **kwargs)


def refused(tool, capsys, checkpoint, out, code, *options):
    """Run in this process; returns the one line on stderr."""
    before = sorted(os.listdir(out.parent)) if out.parent.is_dir() else None
    assert tool.main([str(checkpoint), str(out), *options]) == code
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", stderr), stderr
    assert (sorted(os.listdir(out.parent)) if out.parent.is_dir() else None) == before
    return stderr


def test_a_user_converts_a_checkpoint(tmp_path):
    model = {f"encoder.{name}": tensor for name, tensor in weights().items() if not name.startswith("fc.")}
    model |= {"decoders.res3.weight": torch.zeros(1), "decoders.res4.weight": torch.zeros(1)}
    content = {"format": "loco-det pretraining", "encoder": "resnet18", "iteration": 3, "model": model}
    torch.save(content, tmp_path / "model_final.pth")
    result = run("model_final.pth", "backbone.pkl", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "resnet18 in a loco-det pretraining" in result.stdout and "2 of decoders" in result.stdout
    assert re.findall(r"^  (res\d)  eval mode", result.stdout, re.M) == ["res2", "res3", "res4", "res5"]
    assert "wrote backbone.pkl: resnet18, 120 arrays, 44.8 MB, verified" in result.stdout
    config = result.stdout.split("config that these weights need:\n")[1]
    (tmp_path / "c.yaml").write_text(config)
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "c.yaml"))
    assert cfg.MODEL.WEIGHTS == "backbone.pkl" and cfg.MODEL.RESNETS.DEPTH == 18
    assert yaml.safe_load(config)["MODEL"]["RESNETS"]["RES2_OUT_CHANNELS"] == 64
    assert sorted(os.listdir(tmp_path)) == ["backbone.pkl", "c.yaml", "model_final.pth"]


def test_a_user_gives_a_text_file(tmp_path):
    (tmp_path / "notes.pth").write_text("not weights\n")
    result = run("notes.pth", "out.pkl", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: notes.pth: not a PyTorch checkpoint (it begins with b'not weights")
    assert result.stderr.count("\n") == 1 and os.listdir(tmp_path) == ["notes.pth"]


def test_a_user_runs_out_of_disk(tmp_path, r18_bytes):
    (tmp_path / "r18.pth").write_bytes(r18_bytes)
    limit = (5_000_000, 5_000_000)  # bytes a file may have: writing fails on the way, as on a full disk
    result = run(
        "r18.pth", "out.pkl", cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"error: out\.pkl: cannot be written \(.*\)\n", result.stderr)
    assert os.listdir(tmp_path) == ["r18.pth"]


def test_help_has_an_example_and_the_exit_codes(tool, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "python tools/convert_to_d2.py" in text and "exit code" in text


@pytest.mark.parametrize("args", [[], ["a.pth"], ["a.pth", "b.pkl", "--arch", "vgg16"]])
def test_bad_usage_is_2(tool, capsys, args):
    with pytest.raises(SystemExit) as caught:
        tool.main(args)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


class Hostile:
    """Writes a file when a careless program unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "no such file"),
        ("folder", "a folder, expected a checkpoint file"),
        ("empty", "the file is empty"),
        ("text", "not a PyTorch checkpoint"),
        ("picture", "not a PyTorch checkpoint"),
        ("truncated", "damaged or truncated"),
        ("truncated old", "damaged or truncated"),
        ("flipped", "damaged or truncated"),
        ("hostile", "could run code: refused"),
        ("namespace", r"argparse\.Namespace"),
        ("module", "could run code: refused"),
        ("torchscript", "TorchScript"),
    ],
)
def test_files_that_are_no_checkpoint(tool, capsys, tmp_path, r18_bytes, kind, message):
    path, trap = tmp_path / "in.pth", tmp_path / "trap"
    content = {
        "empty": b"",
        "text": b"state_dict: of words\n" * 100,
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "truncated": r18_bytes[: len(r18_bytes) // 2],
        # The beginning of the archive's pickled names, which torch reads first.
        "flipped": r18_bytes.replace(
            b"ccollections\nOrderedDict", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" * 2
        ),
    }
    if kind == "folder":
        path.mkdir()
    elif kind in content:
        path.write_bytes(content[kind])
    elif kind == "truncated old":
        torch.save(weights(), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:1_000_000])
    elif kind == "hostile":
        torch.save({"model": weights(), "extra": Hostile(trap)}, path)
    elif kind == "namespace":
        torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, path)
    elif kind == "module":
        torch.save(torchvision.models.resnet18(weights=None), path)
    elif kind == "torchscript":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    line = refused(tool, capsys, path, tmp_path / "out.pkl", 2 if kind == "missing" else 1)
    assert re.search(message, line), line
    assert str(path) in line and not trap.exists()


def vit():
    return shapes_only("vit_b_16")


def resnet50d():
    """timm's deep stem: three convolutions, and a pooled shortcut whose convolution is the second."""
    state_dict = shapes_only("resnet50")
    state_dict["conv1.0.weight"] = state_dict.pop("conv1.weight")
    return state_dict


def half_width():
    return {
        name: tensor[: tensor.shape[0] // 2] if tensor.dim() else tensor
        for name, tensor in shapes_only("resnet18").items()
    }


def without(*names):
    return {name: tensor for name, tensor in shapes_only("resnet18").items() if not name.startswith(names)}


def poisoned(value, name="layer2.0.conv1.weight"):
    state_dict = weights()
    state_dict[name].view(-1)[5] = value
    return state_dict


OURS = {"format": "loco-det pretraining"}


@pytest.mark.parametrize(
    "content, message",
    [
        (vit, r"vision transformer \(class_token\) among 152 names"),
        (resnet50d, r"deep stem .*resnet50d"),
        (half_width, r"conv1.weight is 32x3x7x7 and should be 64x3x7x7, .* and \d+ more"),
        (lambda: shapes_only("wide_resnet50_2"), r"not torchvision's resnet50.*of another shape.*128x64x1x1"),
        (lambda: shapes_only("resnext50_32x4d"), r"of another shape"),
        (
            lambda: shapes_only("resnet152"),
            r"saw a ResNet of bottleneck 3-8-36-3 blocks, expected one of basic 2-2-2-2",
        ),
        (lambda: shapes_only("vgg11"), r"saw no conv1.weight among 22 names \(features.0.weight, "),
        (lambda: without("layer4.0.downsample."), r"5 missing \(layer4.0.downsample.0.weight, .* and 2 more\)"),
        (lambda: without("layer4."), r"basic 2-2-2-0"),
        (
            lambda: {**weights(), **{f"se.{i}": torch.ones(1) for i in range(5)}},
            r"5 left over \(se.0, se.1, se.2 and 2 more",
        ),
        (lambda: poisoned(float("nan")), r"NaN or infinite values in 1 tensors \(layer2.0.conv1.weight\)"),
        (lambda: poisoned(float("inf"), "bn1.running_var"), r"infinite values in 1 tensors \(bn1.running_var\)"),
        (
            lambda: {**weights(), "conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int8)},
            r"conv1.weight holds torch.int8",
        ),
        (lambda: {**weights(), "conv1.weight": torch.zeros(64, 3, 7, 7).to_sparse()}, r"conv1.weight .*sparse"),
        (lambda: [torch.ones(1)], r"holds a list"),
        (lambda: torch.ones(3), r"holds a Tensor"),
        (dict, r"holds no weights"),
        (lambda: {"epoch": 3, "lr": 0.1}, r"not a state dict: 2 of 2 entries no tensor \(epoch, lr\)"),
        (lambda: {"model": {"conv1.weight": 3}}, r"1 of 1 entries no tensor"),
        (lambda: {1: torch.ones(1)}, r"1 of 1 entries no tensor"),
        (
            lambda: {f"module.encoder_q.{name}": t for name, t in weights().items()},
            r"no conv1.weight .*encoder_q.conv1",
        ),
        (lambda: OURS, r"model holds no weights"),
        (lambda: {**OURS, "model": {"decoders.a": torch.ones(1)}}, r"without encoder\.\*, only decoders.a"),
        (
            lambda: {**OURS, "encoder": "resnet50", "model": {f"encoder.{n}": t for n, t in without("fc.").items()}},
            r"calls its encoder 'resnet50', but the weights are a resnet18's",
        ),
    ],
)
def test_checkpoints_of_something_else(tool, capsys, tmp_path, content, message):
    path = tmp_path / "in.pth"
    torch.save(content(), path)
    line = refused(tool, capsys, path, tmp_path / "out.pkl", 1)
    assert re.search(message, line), line
    assert line.startswith(f"error: {path}: ")


def test_another_arch_than_asked_for(tool, capsys, tmp_path):
    torch.save(shapes_only("resnet18"), tmp_path / "in.pth")
    line = refused(tool, capsys, tmp_path / "in.pth", tmp_path / "out.pkl", 1, "--arch", "resnet34")
    assert "this is a resnet18, not the resnet34 that was asked for" in line


def test_output_names_that_cannot_be(tool, capsys, tmp_path, r18_bytes):
    path = tmp_path / "in.pkl"
    path.write_bytes(r18_bytes)
    (tmp_path / "folder.pkl").mkdir()
    assert "must end in .pkl" in refused(tool, capsys, path, tmp_path / "out.pth", 2)
    assert "create it first" in refused(tool, capsys, path, tmp_path / "no" / "out.pkl", 2)
    assert "a folder" in refused(tool, capsys, path, tmp_path / "folder.pkl", 2)
    assert "the checkpoint itself" in refused(tool, capsys, path, path, 2)
    assert "as a URL" in refused(tool, capsys, path, tmp_path / "what?.pkl", 2)
    assert path.read_bytes() == r18_bytes


def test_a_failed_verification_is_1_and_keeps_the_old_file(tool, capsys, tmp_path, r18_bytes, monkeypatch):
    path, out = tmp_path / "in.pth", tmp_path / "out.pkl"
    path.write_bytes(r18_bytes)
    out.write_bytes(b"older")
    dump = pickle.dump

    def flipped(content, file):
        content["model"]["stem.conv1.weight"] = content["model"]["stem.conv1.weight"][:, ::-1].copy()
        dump(content, file)

    monkeypatch.setattr(pickle, "dump", flipped)
    line = refused(tool, capsys, path, out, 1)
    assert re.search(r"in\.pth: res2 differs from the source network by 0\.\d+ relative .*; nothing was written", line)
    assert out.read_bytes() == b"older"


def test_an_unwritable_folder_is_1(tool, capsys, tmp_path, r18_bytes, monkeypatch):
    path = tmp_path / "in.pth"
    path.write_bytes(r18_bytes)
    conversion = sys.modules["loco_det.convert.conversion"]

    def denied(name, mode="r"):  # permissions do not stop root, so the test does
        if mode == "xb":
            raise PermissionError(13, "Permission denied", str(name))
        return open(name, mode)

    monkeypatch.setattr(conversion, "open", denied, raising=False)
    assert "out.pkl: cannot be written (Permission denied)" in refused(tool, capsys, path, tmp_path / "out.pkl", 1)

"""tools/convert_from_d2.py: Detectron2's checkpoints as torchvision state dicts, bit for bit, or one line."""

import json
import os
import pickle
import re
import resource
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from detectron2.config import get_cfg

from loco_det.cli import convert_from_d2
from loco_det.convert import convert
from pretrain.encoders import build_encoder

THIN = "resnet50x0.125"  # of 1.5 MB


def call(*arguments):
    """The exit code of a command line, in this process."""
    return convert_from_d2.run(convert_from_d2.parser().parse_args([str(a) for a in arguments]))


def weights(arch):
    """An encoder's state dict in which no two tensors are alike, as after some training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state_dict = build_encoder(arch).state_dict()
        for step, (name, tensor) in enumerate(state_dict.items()):
            if name.endswith("num_batches_tracked"):
                tensor.fill_(1000 + step)
            elif tensor.dim() == 1:
                tensor.mul_(0.9).add_(torch.rand_like(tensor) / 10)
    return state_dict


def as_detectron2(folder, arch=THIN):
    """The same in Detectron2's names, by our own conversion, and its config."""
    torch.save(weights(arch), folder / "source.pth")
    result = convert(folder / "source.pth", folder / "source.pkl")
    with open(folder / "source.pkl", "rb") as file:
        model = pickle.load(file)["model"]
    return {name: torch.from_numpy(array) for name, array in model.items()}, result.config


@pytest.fixture(scope="module")
def thin(tmp_path_factory):
    return as_detectron2(tmp_path_factory.mktemp("thin"))


@pytest.fixture
def run_of_a_detector(tmp_path, thin):
    """Make the output folder of a training run; returns the path of its checkpoint."""

    def make(model=None, prefix="backbone.bottom_up.", config=None, **changes):
        model = {prefix + name: tensor for name, tensor in (thin[0] if model is None else model).items()}
        model |= {"backbone.fpn_lateral2.weight": torch.ones(4, 4, 1, 1), "proposal_generator.x.bias": torch.ones(1)}
        torch.save({"model": model, "optimizer": {"state": {0: {"m": torch.ones(3)}}}, "iteration": 89999},
                   tmp_path / "model_final.pth")  # fmt: skip
        if config is not False:
            config = yaml.safe_load(yaml.safe_dump(thin[1] if config is None else config))
            config["MODEL"]["RESNETS"].update(changes)
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "model_final.pth"

    return make


def same(got, wanted):
    assert list(got) == list(wanted)
    for name, tensor in wanted.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert got[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def refused(capsys, code, *arguments):
    """Run in this process; returns the one line on stderr."""
    folder = Path(arguments[1]).parent
    before = sorted(os.listdir(folder)) if folder.is_dir() else None
    assert call(*arguments) == code
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and re.fullmatch(r"error: [^\n]+\n", stderr), stderr
    assert (sorted(os.listdir(folder)) if folder.is_dir() else None) == before
    return stderr


def test_a_user_takes_a_backbone_from_a_detector(run_tool, run_of_a_detector, tmp_path):
    done = run_tool("convert_from_d2.py", run_of_a_detector(), tmp_path / "backbone.pth")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"source: {THIN} at 'model/backbone.bottom_up.'" in done.stdout
    assert re.findall(r"^  (res\d)  eval mode \S+ \(\S+\)  training mode", done.stdout, re.M) == [
        "res2", "res3", "res4", "res5"]  # fmt: skip
    assert re.search(rf"^wrote {tmp_path}/backbone.pth: {THIN}, 318 arrays, [\d.]+ MB, verified$", done.stdout, re.M)
    assert "config that" not in done.stdout
    same(torch.load(tmp_path / "backbone.pth", weights_only=True), weights(THIN))
    assert sorted(os.listdir(tmp_path)) == ["backbone.pth", "config.yaml", "model_final.pth"]


@pytest.mark.parametrize(
    "arch",
    ["resnet18", "resnet18x0.5", "resnet50x0.25", "resnet50_stem8_1x16d_out32", "resnext50_4x4d", "resnet101x0.125",
     "presnet50", "shufflenetv2_50"],
)  # fmt: skip
def test_there_and_back_gives_the_same_bits(tmp_path, arch):
    as_detectron2(tmp_path, arch)
    assert call(tmp_path / "source.pkl", tmp_path / "back.pth", "--arch", arch) == 0
    same(torch.load(tmp_path / "back.pth", weights_only=True), weights(arch))


def test_the_result_is_torchvisions(tmp_path):
    as_detectron2(tmp_path, "resnet18")
    assert call(tmp_path / "source.pkl", tmp_path / "back.pth") == 0
    network = torchvision.models.resnet18(weights=None)
    state_dict = torch.load(tmp_path / "back.pth", weights_only=True)
    keys = network.load_state_dict(state_dict, strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"] and not keys.unexpected_keys


def test_half_precision_and_frozen_norms_without_counters(capsys, run_of_a_detector, thin, tmp_path):
    model = {n: t.half() if t.is_floating_point() else t for n, t in thin[0].items() if "num_batches" not in n}
    assert call(run_of_a_detector(model), tmp_path / "back.pth") == 0
    assert "265 tensors were float16, and are now float32" in capsys.readouterr().out
    wanted = weights(THIN)
    for tensor in wanted.values():
        tensor.copy_(tensor.half().float()) if tensor.is_floating_point() else tensor.zero_()
    same(torch.load(tmp_path / "back.pth", weights_only=True), wanted)


def test_a_frozen_backbone_alone_in_a_pkl(tmp_path, thin):
    """As Detectron2's model zoo has them: no prefix, no counters, arrays, a classifier, no config."""
    model = {name: tensor.numpy() for name, tensor in thin[0].items() if "num_batches" not in name}
    model["stem.fc.weight"] = torch.ones(10, 256).numpy()
    (tmp_path / "R-50.pkl").write_bytes(
        pickle.dumps({"model": model, "__author__": "torchvision", "matching_heuristics": True})
    )
    (tmp_path / "of_the_run.yaml").write_text(yaml.safe_dump(thin[1]))
    config = str(tmp_path / "of_the_run.yaml")
    assert call(tmp_path / "R-50.pkl", tmp_path / "back.pth", "--config-file", config) == 0
    wanted = {n: t.zero_() if n.endswith("num_batches_tracked") else t for n, t in weights(THIN).items()}
    same(torch.load(tmp_path / "back.pth", weights_only=True), wanted)


def test_json(capsys, run_of_a_detector, tmp_path):
    assert call(run_of_a_detector(), tmp_path / "back.pth", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["output"], found["config_file"]) == (str(tmp_path / "back.pth"), None)
    assert found["size"] == (tmp_path / "back.pth").stat().st_size and found["entries"] == 318
    assert found["source"]["arch"] == THIN and found["source"]["layout"] == "detectron2"
    assert found["source"]["dropped"] == {"backbone": 1, "proposal_generator": 1}
    for mode in ("eval", "train"):
        assert list(found["differences"][mode]) == ["res2", "res3", "res4", "res5"]
        assert all(stage["relative"] <= 1e-5 for stage in found["differences"][mode].values())


def test_strides_that_torchvision_has_elsewhere(capsys, run_of_a_detector, tmp_path):
    line = refused(capsys, 1, run_of_a_detector(STRIDE_IN_1X1=True), tmp_path / "back.pth")
    assert "STRIDE_IN_1X1 True" in line and "no torchvision network" in line


def test_detectron2s_own_default_is_such_a_stride(capsys, run_of_a_detector, tmp_path):
    assert get_cfg().MODEL.RESNETS.STRIDE_IN_1X1
    path = run_of_a_detector(config={"MODEL": {"RESNETS": {"DEPTH": 50}}})
    assert "STRIDE_IN_1X1 True" in refused(capsys, 1, path, tmp_path / "back.pth")


def test_a_checkpoint_without_its_config(capsys, run_of_a_detector, tmp_path):
    path = run_of_a_detector(config=False)
    assert "with --config-file" in refused(capsys, 1, path, tmp_path / "back.pth")
    line = refused(capsys, 2, path, tmp_path / "back.pth", "--config-file", tmp_path / "nowhere.yaml")
    assert "nowhere.yaml: no such" in line
    for text in ("{", "- a list", "!!python/name:os.system", "\0"):
        (tmp_path / "odd.yaml").write_text(text)
        line = refused(capsys, 1, path, tmp_path / "back.pth", "--config-file", tmp_path / "odd.yaml")
        assert "odd.yaml" in line or "--config-file" in line


def test_group_norm(capsys, run_of_a_detector, thin, tmp_path):
    model = {n: t for n, t in thin[0].items() if not re.search("running_|num_batches", n)}
    assert "GroupNorm" in refused(capsys, 1, run_of_a_detector(model), tmp_path / "back.pth")


def test_what_is_no_such_backbone(capsys, run_of_a_detector, thin, tmp_path):
    out = tmp_path / "back.pth"
    assert "no such file" in refused(capsys, 2, tmp_path / "nowhere.pth", out)
    model = dict(thin[0])
    del model["res5.2.conv3.weight"]
    assert "1 missing (layer4.2.conv3.weight)" in refused(capsys, 1, run_of_a_detector(model), out)
    model = thin[0] | {"res3.0.conv1.weight": torch.full_like(thin[0]["res3.0.conv1.weight"], torch.nan)}
    assert "NaN or infinite values in 1 tensors" in refused(capsys, 1, run_of_a_detector(model), out)
    line = refused(capsys, 1, run_of_a_detector(), out, "--arch", "resnet50")
    assert f"this is a {THIN}, not the resnet50" in line
    torch.save(weights(THIN), tmp_path / "torchvision.pth")
    assert "not laid out as detectron2" in refused(capsys, 1, tmp_path / "torchvision.pth", out)


def test_places_that_cannot_be_written(capsys, run_of_a_detector, tmp_path):
    path = run_of_a_detector()
    assert "create it first" in refused(capsys, 2, path, tmp_path / "no" / "back.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "a folder" in refused(capsys, 2, path, tmp_path / "folder.pth")
    assert "the checkpoint itself" in refused(capsys, 2, path, path)


def test_a_failure_keeps_the_old_file(capsys, run_of_a_detector, tmp_path, monkeypatch):
    path, out = run_of_a_detector(), tmp_path / "back.pth"
    out.write_bytes(b"older")
    save, load = torch.save, torch.load

    def flipped(content, file):
        save(content | {"conv1.weight": content["conv1.weight"].flip(1)}, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", flipped)
        line = refused(capsys, 1, path, out)
        assert re.search(r"model_final\.pth: res2 differs .*; nothing was written", line)
    for error, code, text in (
        (KeyboardInterrupt(), 130, "interrupted, nothing was written"),
        (OSError(28, "No space left on device"), 1, "back.pth: No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] .\nunexpected pos 1 vs 0"), 1, "cannot write"),
    ):

        def fails(*args, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", fails)
            assert text in refused(capsys, code, path, out)
    assert out.read_bytes() == b"older" and torch.load is load


def test_what_the_reader_ignores_is_not_run_by_detectron2(tmp_path, thin):
    """Detectron2 unpickles a .pkl as it is: it must never be given the user's file."""

    def text(value):
        return b"\x8c" + bytes([len(value)]) + value.encode()

    content = {name: tensor.numpy() for name, tensor in thin[0].items()}
    content = {"model": content, "__author__": "loco-det", "matching_heuristics": True, "config": thin[1]}
    trap, data = tmp_path / "trap", pickle.dumps(content, protocol=4)
    # A name below a package of which the reader makes nothing, and which is in truth a function of another
    trapped = text("x") + text("pathlib") + text("os.mkdir") + b"\x93" + text(str(trap)) + b"\x85Rs."
    (tmp_path / "hostile.pkl").write_bytes(data[:-1] + trapped)
    pickle.loads(data[:-1] + trapped)
    trap.rmdir()  # the trap works
    assert call(tmp_path / "hostile.pkl", tmp_path / "back.pth") == 0
    assert not trap.exists()


def test_a_full_disk(capsys, run_of_a_detector, tmp_path):
    path, out = run_of_a_detector(), tmp_path / "back.pth"
    out.write_bytes(b"older")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))  # bytes a file may have
        line = refused(capsys, 1, path, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "back.pth: File too large" in line and out.read_bytes() == b"older"

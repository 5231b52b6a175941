"""The guard on weights: what fills the backbone passes, everything else is one line."""

import io
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model

import loco_det.modeling.roi_heads  # noqa: F401, registers those of C4
from loco_det.config import add_loco_config
from loco_det.convert import convert, load_source
from loco_det.engine.checkpoint import GuardedCheckpointer
from pretrain.encoders import build_encoder
from pretrain.engine.logs import start_logs

# of a number, a list and an unknown class
PICKLES = (b"\x80\x04K\x01.", b"\x80\x02]q\x00K\x01a.", b"\x80\x02cno_such\nX\nq\x00.")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A converted ResNet-18 and the state dict that it was made of."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(build_encoder("resnet18").state_dict(), folder / "r18.pth")
    convert(str(folder / "r18.pth"), str(folder / "r18.pkl"))
    return folder


def detector(freeze_at=5, depth=18):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file("configs/demo_coco_loco_frozen.yaml")
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.DEVICE = freeze_at, depth, "cpu"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    return build_model(cfg)


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize("freeze_at", [0, 5])
def test_converted_weights_fill_the_backbone(weights, freeze_at):
    model = detector(freeze_at)
    GuardedCheckpointer(model).load(str(weights / "r18.pkl"))
    expected = torch.load(weights / "r18.pth")["layer4.1.conv2.weight"]
    assert torch.equal(model.backbone.bottom_up.res5[1].conv2.weight, expected)


def without(weights, path, *names):
    content = pickle.loads((weights / "r18.pkl").read_bytes())
    del content["checksum"]
    for name in names:
        del content["model"][name]
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("freeze_at", [0, 5])
def test_one_missing_tensor_is_enough(weights, tmp_path, freeze_at):
    """With frozen BN Detectron2 itself fills in the missing statistics and reports nothing."""
    without(weights, tmp_path / "w.pkl", "res4.0.conv1.norm.running_var")
    with pytest.raises(ValueError, match=r"fills 99 of 100 tensors .*res4.0.conv1.norm.running_var"):
        GuardedCheckpointer(detector(freeze_at)).load(str(tmp_path / "w.pkl"))


def test_weights_of_another_network(weights, tmp_path):
    """One line with the remedy; what Detectron2 says of each tensor is in the log."""
    start_logs(str(tmp_path), "detectron2", "fvcore")
    shown = io.StringIO()
    for name in ("detectron2", "fvcore"):
        next(h for h in logging.getLogger(name).handlers if not isinstance(h, logging.FileHandler)).setStream(shown)
    remedy = re.escape(f"add --overlay {weights / 'r18.yaml'}, or")
    with pytest.raises(ValueError, match=f"fills .* of .* tensors of the backbone; not .*, for one: .*, {remedy}"):
        GuardedCheckpointer(detector(depth=50)).load(str(weights / "r18.pkl"))
    assert "WARNING" not in shown.getvalue() and "Shape of " in (tmp_path / "log.txt").read_text()
    shutil.copy(weights / "r18.pkl", tmp_path / "alone.pkl")
    with pytest.raises(ValueError, match="for one: convert a checkpoint with"):
        GuardedCheckpointer(detector(depth=50)).load(str(tmp_path / "alone.pkl"))


def test_a_backbone_without_a_detector_is_no_reason_for_a_warning(weights, tmp_path, caplog):
    start_logs(str(tmp_path), "detectron2", "fvcore")
    GuardedCheckpointer(detector()).load(str(weights / "r18.pkl"))
    assert caplog.records and not [record for record in caplog.records if record.levelno > logging.INFO]
    assert "WARNING: Some model parameters or buffers are not found" in (tmp_path / "log.txt").read_text()


def test_other_warnings_are_shown(weights, tmp_path, caplog):
    model = detector()
    content = {
        "model": {**model.state_dict(), "roi_heads.box_predictor.cls_score.bias": torch.zeros(3), "x": torch.zeros(1)}
    }
    torch.save(content, tmp_path / "detector.pth")
    GuardedCheckpointer(model).load(str(tmp_path / "detector.pth"))
    assert "Skip loading parameter 'roi_heads.box_predictor.cls_score.bias'" in caplog.text
    assert "contains keys that are not used" in caplog.text


def test_unconverted_weights(weights):
    with pytest.raises(ValueError, match=r"fills 0 of .*tools/convert_to_d2.py"):
        GuardedCheckpointer(detector()).load(str(weights / "r18.pth"))


def test_evaluation_needs_the_whole_detector(weights, tmp_path):
    class Whole(GuardedCheckpointer):
        required = ""

    model = detector()
    with pytest.raises(ValueError, match="tensors of the detector"):
        Whole(model).load(str(weights / "r18.pkl"))
    Whole(model, str(tmp_path)).save("whole")
    Whole(model).load(str(tmp_path / "whole.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.pkl"])
@pytest.mark.parametrize("content", [b"hello, world\n" * 20, b"", *PICKLES])
def test_files_that_are_no_checkpoints(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint that Detectron2 can load") as error:
        GuardedCheckpointer(detector()).load(str(path))
    assert "\n" not in str(error.value)


def test_a_flipped_bit_in_converted_weights(weights, tmp_path):
    """A .pkl has no checksum of its own; ours brings one."""
    data = bytearray((weights / "r18.pkl").read_bytes())
    tensor = torch.load(weights / "r18.pth")["layer4.1.conv2.weight"].numpy().tobytes()
    data[data.index(tensor[:64]) + 1000] ^= 1
    (tmp_path / "r18.pkl").write_bytes(data)
    with pytest.raises(ValueError, match="r18.pkl .*a damaged checkpoint \\(checksum of its weights\\)"):
        GuardedCheckpointer(detector()).load(str(tmp_path / "r18.pkl"))
    with pytest.raises(ValueError, match="r18.pkl: a damaged checkpoint \\(checksum of its weights\\)"):
        load_source(str(tmp_path / "r18.pkl"))


def test_truncated_and_missing_files(weights, tmp_path):
    for name in ("r18.pth", "r18.pkl"):
        content = (weights / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="is not a checkpoint"):
            GuardedCheckpointer(detector()).load(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no such file"):
        GuardedCheckpointer(detector()).load(str(tmp_path / "nowhere.pkl"))


FULL_DISK = """
import resource, sys, torch
import loco_det.modeling.roi_heads  # noqa: F401, registers those of C4
from loco_det.engine.checkpoint import GuardedCheckpointer
from pretrain.engine.checkpoint import AtomicCheckpointer
from pretrain.config import get_cfg
cfg, model = get_cfg(), torch.nn.Linear(1000, 1000)
cfg.OUTPUT_DIR = sys.argv[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    {checkpointer}.save("model_final", iteration=1)
except OSError as error:
    print("OSError", len(str(error).splitlines()))
"""


@pytest.mark.parametrize(
    "checkpointer", ["GuardedCheckpointer(model, cfg.OUTPUT_DIR)", "AtomicCheckpointer(cfg, model)"]
)
def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, checkpointer):
    (tmp_path / "model_final.pth").write_text("older")
    (tmp_path / "last_checkpoint").write_text("older.pth")
    code = FULL_DISK.format(checkpointer=checkpointer)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=os.getcwd())
    assert done.stdout.strip() == "OSError 1", done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]
    assert (tmp_path / "model_final.pth").read_text() == "older"
    assert (tmp_path / "last_checkpoint").read_text() == "older.pth"


@pytest.fixture(scope="module")
def c4(tmp_path_factory, request):
    """A C4 detector's config, narrow, and what a converted classifier of its ResNet looks like: names and arrays."""
    cfg = get_cfg()
    add_loco_config(cfg)
    folder = request.config.rootpath / "configs/detection/coco_finetune_c4_2x"
    cfg.merge_from_file(str(folder / "resnet50_moco_v1_200ep.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = "cpu", 8, 4
    classifier = cfg.clone()
    classifier.MODEL.RESNETS.OUT_FEATURES, classifier.MODEL.RESNETS.NORM = ["res5"], "BN"
    torch.manual_seed(1)
    state = {k: v.numpy() for k, v in build_backbone(classifier).state_dict().items()}
    return cfg, {k: v for k, v in state.items() if "num_batches" not in k}


def test_c4_detectors_are_filled_by_a_classifier(c4, tmp_path):
    cfg, state = c4
    content = {"model": state, "__author__": "test", "matching_heuristics": True}
    (tmp_path / "whole.pkl").write_bytes(pickle.dumps(content))
    model = build_model(cfg)
    GuardedCheckpointer(model).load(str(tmp_path / "whole.pkl"))
    for name, parameter in (("stem.conv1", model.backbone.stem.conv1), ("res4.5.conv3", model.backbone.res4[5].conv3),
                            ("res5.0.shortcut", model.roi_heads.res5[0].shortcut)):  # fmt: skip
        assert torch.equal(parameter.weight, torch.from_numpy(state[f"{name}.weight"]))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (r"res5\.", "not roi_heads.res5.0.shortcut.weight"),  # all of it, as in a C4 backbone
        (r"res5\.2\.conv3\.norm\.running_var", "not roi_heads.res5.2.conv3.norm.running_var"),
        (r"res4\.5\.conv1\.weight", "not backbone.res4.5.conv1.weight"),
    ],
)
def test_c4_detectors_want_res5_in_the_heads(c4, tmp_path, missing, message):
    cfg, state = c4
    kept = {k: v for k, v in state.items() if not re.match(missing, k)}
    content = {"model": kept, "__author__": "test", "matching_heuristics": True}
    (tmp_path / "part.pkl").write_bytes(pickle.dumps(content))
    count = len(state)
    with pytest.raises(ValueError, match=f"fills {len(kept)} of {count} tensors of the backbone; {message}"):
        GuardedCheckpointer(build_model(cfg)).load(str(tmp_path / "part.pkl"))


@pytest.mark.parametrize("content", [{"model": {}, "x": 3}, {"model": {"a": torch.ones(1)}, "a\nb": "c"}])
def test_what_detectron2_says_of_a_file_is_one_line_with_its_name(tmp_path, content):
    torch.save({**content, "model": {**content["model"], "b": "text"}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth") as error:
        GuardedCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / "a.pth"), checkpointables=[])
    assert "\n" not in str(error.value)

"""tools/train_net.py with networks of timm, on a few generated scenes: trained, resumed, evaluated, refused."""

import itertools
import json
import logging

import pytest
import torch
from checkout import ROOT
from narrow import NARROW
from run_files import results

from loco_det.demo_scenes.writing import make_demo_data
from loco_det.modeling.timm.network import build_network

NUMBERS = itertools.count()  # one process registers a name once
NETWORKS = ("test_vit", "test_convnext", "swin_tiny_patch4_window7_224")
TINY = ("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)", "SOLVER.CHECKPOINT_PERIOD", 1, "DATALOADER.NUM_WORKERS", 0,
        "TEST.PRECISE_BN.NUM_ITER", 1, "TEST.NUM_PICTURES", 0, "TEST.DETECTIONS_PER_IMAGE", 10,
        "SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 1e-4, "SOLVER.LAYER_DECAY", 0.7, *NARROW)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Demo scenes, and weights of the networks as the converter names them."""
    root = tmp_path_factory.mktemp("data")
    make_demo_data(root / "demo", num_train=4, num_val=2, size=(64, 96), workers=1, layouts=("coco",))
    for name in NETWORKS:
        torch.manual_seed(0)
        weights = {f"network.{k}": v for k, v in build_network(name).state_dict().items()}
        torch.save({"model": weights, "matching_heuristics": True}, root / f"{name}.pth")
    return root


@pytest.fixture
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)
    # Detectron2's log handlers of earlier runs in this process hold streams that pytest has closed
    monkeypatch.setattr(logging, "raiseExceptions", False)


def arguments(data, out, name, freeze_at=99):
    coco, words = data / "demo" / "coco", ["--config-file", "configs/demo_coco_loco_frozen.yaml", *TINY]
    for split, part in (("TRAIN", "train"), ("TEST", "val")):
        words += [f"DATASETS.CUSTOM.{split}_JSON", coco / f"annotations/instances_{part}.json"]
        words += [f"DATASETS.CUSTOM.{split}_IMAGES", coco / part]
    words += ["DATASETS.CUSTOM.NAME", f"timm_{next(NUMBERS)}", "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone",
              "MODEL.TIMM.NAME", name, "MODEL.WEIGHTS", data / f"{name}.pth", "MODEL.BACKBONE.FREEZE_AT", freeze_at,
              "OUTPUT_DIR", out]  # fmt: skip
    return words


def renamed():
    return "DATASETS.CUSTOM.NAME", f"timm_{next(NUMBERS)}"


def weights_of(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=False)["model"]


@pytest.mark.parametrize("name", NETWORKS)
def test_train_resume_and_evaluate(call_tool, in_checkout, data, tmp_path, name, capsys):
    out, tuned = tmp_path / "frozen", tmp_path / "tuned"
    assert call_tool("train_net", *arguments(data, out, name)) == 0, capsys.readouterr().err
    found = results(out)
    assert found["backbone"] == name and found["frozen"] and {"bbox", "segm"} == found["results"].keys()
    given, after = torch.load(data / f"{name}.pth")["model"], weights_of(out)
    backbone = {k.partition(".network.")[2]: v for k, v in after.items() if ".network." in k}
    assert {f"network.{k}" for k in backbone} == given.keys()
    assert all(torch.equal(v, given[f"network.{k}"]) for k, v in backbone.items())  # not a bit has changed
    again = [*arguments(data, tmp_path / "again", name), "MODEL.WEIGHTS", out / "model_final.pth"]
    assert call_tool("train_net", "--eval-only", *again) == 0
    assert results(tmp_path / "again")["results"] == found["results"]

    learning = [*arguments(data, tuned, name, 2), "MODEL.TIMM.DROP_PATH", 0.2]
    assert call_tool("train_net", *learning) == 0, capsys.readouterr().err
    whole = weights_of(tuned)
    (tuned / "model_final.pth").unlink()
    (tuned / "last_checkpoint").write_text("model_0000000.pth")
    assert call_tool("train_net", "--resume", *learning, *renamed()) == 0, capsys.readouterr().err
    resumed = weights_of(tuned)
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())  # also what stochastic depth has drawn
    changed = {k for k, v in whole.items() if ".network." in k and not torch.equal(v, given[k[k.index("network.") :]])}
    last = {"test_vit": "blocks.5.", "test_convnext": "stages.3."}.get(name, "layers.3.")
    first = {"test_vit": ("blocks.0.", "patch_embed."), "test_convnext": ("stages.0.", "stem.")}
    first = first.get(name, ("layers.0.", "patch_embed."))
    assert any(f".network.{last}" in k for k in changed)
    assert not any(k.partition(".network.")[2].startswith(first) for k in changed)


def test_bfloat16_and_jitter(call_tool, in_checkout, data, tmp_path, capsys):
    for freeze_at in (0, 99):
        words = [*arguments(data, tmp_path / f"{freeze_at}", "test_vit", freeze_at), "SOLVER.AMP.ENABLED", True,
                 "INPUT.LSJ.SIZE", 64, "INPUT.MAX_SIZE_TEST", 96, "MODEL.TIMM.SQUARE_PAD", 96,
                 "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "()"]  # fmt: skip
        assert call_tool("train_net", *words) == 0, capsys.readouterr().err
        lines = [json.loads(line) for line in (tmp_path / f"{freeze_at}" / "metrics.json").read_text().splitlines()]
        assert all(torch.isfinite(torch.tensor(line["total_loss"])) for line in lines if "total_loss" in line)


@pytest.mark.parametrize("change, message", [
    (["MODEL.TIMM.NAME", "vit_smal_patch16_224"], "did you mean vit_small_patch16_224, "),
    (["MODEL.TIMM.NAME", "bert_base"], "timm has no such network"),
    (["MODEL.TIMM.NAME", "crossvit_tiny_240"], "its feature maps have neither strides"),
    (["MODEL.TIMM.NAME", "mixer_s16_224"], "this network cannot take images of 256 x 320 pixels"),
    (["MODEL.TIMM.NAME", "efficientvit_m0"], "has maps of strides 16, 32 and no res2, res3"),
    (["MODEL.TIMM.NAME", ""], "needs a network: set MODEL.TIMM.NAME"),
    (["MODEL.TIMM.NAME", "test_convnext"], "test_vit.pth is no test_convnext: it has no stem.0.weight (and "),
    (["MODEL.TIMM.SQUARE_PAD", 100], "MODEL.TIMM.SQUARE_PAD 100: expected a multiple of 32"),
    (["MODEL.TIMM.SQUARE_PAD", 64], "MODEL.TIMM.SQUARE_PAD 64: images have sides of up to "),
    (["MODEL.TIMM.DROP_PATH", 1.0], "MODEL.TIMM.DROP_PATH 1.0: expected a rate"),
    (["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"], "is not what MODEL.BACKBONE.NAME build_resnet_fpn_backbone"),
    (["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.TIMM.NAME", "", "SOLVER.LAYER_DECAY", 1.0],
     "test_vit.pth holds a network of timm (cls_token, ...), and MODEL.BACKBONE.NAME build_resnet_fpn_backbone is"),
    (["SOLVER.OPTIMIZER", "Adam"], "SOLVER.OPTIMIZER 'Adam': use one of SGD, AdamW"),
    (["SOLVER.LAYER_DECAY", 2.0], "SOLVER.LAYER_DECAY 2.0: expected a factor"),
    (["INPUT.LSJ.SIZE", 64, "INPUT.LSJ.MIN_SCALE", 4.0], "INPUT.LSJ: SIZE 64, MIN_SCALE 4.0"),
])  # fmt: skip
def test_bad_input_gets_one_line_before_any_work(call_tool, in_checkout, data, tmp_path, change, message, capsys):
    assert call_tool("train_net", *arguments(data, tmp_path / "out", "test_vit"), *change) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "out" / "config.yaml").exists()

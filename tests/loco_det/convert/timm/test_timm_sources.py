"""Checkpoints of each project with a network that timm computes: recognised, converted, and proven."""

import json
import pickle
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from projects_timm import BEIT, BEITV2, DINOV2, PROJECTS, REGISTERS, SWIGLU, SWIN, VIT, vit
from safetensors.torch import save_file
from small_networks import weights_of
from torch import nn

from loco_det.config import add_loco_config
from loco_det.convert import convert, convert_back, load_source
from loco_det.convert.loading import load_backbone
from loco_det.convert.timm.layouts import TIMM_LAYOUTS
from loco_det.convert.timm.names import to_timm
from loco_det.convert.timm.references import reference
from loco_det.convert.timm.search import find_networks
from loco_det.engine.checkpoint import GuardedCheckpointer
from loco_det.engine.weights import check_network
from pretrain.files.shipped_configs import CONFIGS
from pretrain.files.yaml_files import merge_config_file

ROOT = Path(__file__).resolve().parents[4]
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
HALVES = ([127.5] * 3, [127.5] * 3)


class Expected(NamedTuple):
    """What a checkpoint of ``PROJECTS`` must be found to be."""

    row: str
    name: str
    location: str
    dropped: dict
    ema: str | None = None
    pixels: tuple = IMAGENET
    source: str = "auto"


HEAD = {"projection head": 8}
STUDENT = {"teacher's": 30 + 8, **HEAD}
EXPECTED = {
    "loco-det": Expected(
        "loco-det", VIT, "model/encoder.network.", {"decoders": 2}, pixels=([100, 110, 120], [50, 51, 52])
    ),
    "dino": Expected("dino", VIT, "student/backbone.", STUDENT, "teacher/backbone."),
    "dino-released": Expected("vit", VIT, "", {}),
    "ibot": Expected("ibot", VIT, "student/backbone.", {**STUDENT, "mask token": 1}, "teacher/backbone."),
    "ibot-released": Expected("vit", VIT, "state_dict/", {"mask token": 1}),
    "dinov2": Expected("dinov2", DINOV2, "", {"mask token": 1}),
    "dinov2-registers": Expected("dinov2", REGISTERS, "", {"mask token": 1}),
    "dinov2-swiglu": Expected("dinov2", SWIGLU, "", {"mask token": 1}),
    "dinov2-trained": Expected("dinov2", DINOV2, "teacher/backbone.", {"mask token": 1, "projection head": 16}),
    "mae": Expected("mae", VIT, "model/", {"decoder": 6}),
    "mae-released": Expected("vit", VIT, "model/", {}),
    "mocov3": Expected(
        "mocov3",
        VIT,
        "state_dict/base_encoder.",
        {"projection head": 3, "momentum encoder": 33, "predictor": 2},
        "state_dict/momentum_encoder.",
    ),
    "beit": Expected(
        "beit", BEIT, "model/", {"tables that are computed": 2, "norm of pooled features": 2, "classifier": 1},
        pixels=HALVES, source="beit",
    ),
    "beitv2": Expected(
        "beitv2",
        BEITV2,
        "model/",
        {"tables that are computed": 1, "mask token": 1, "head of pretraining": 3, "norm of pooled features": 2},
    ),
    "convnext": Expected("convnext", "convnext_atto", "model/", {"norm of pooled features": 2, "classifier": 2}),
    "convnextv2": Expected("convnext", "convnextv2_atto", "model/", {"norm of pooled features": 2, "classifier": 2}),
    "swin": Expected(
        "swin", SWIN, "model/", {"norm of pooled features": 2, "classifier": 2, "tables that are computed": 2}
    ),
    "torchvision-vit": Expected(
        "torchvision", VIT, "model/", {"classifier": 2, "model_ema's": 33}, ema="model_ema/"
    ),
    "torchvision-convnext": Expected("torchvision", "convnext_atto", "", {"classifier": 4}),
    "torchvision-swin": Expected(
        "torchvision", SWIN, "", {"tables that are computed": 8, "norm of pooled features": 2, "classifier": 2}
    ),
    "torchvision-regnet-y": Expected("torchvision", "regnety_004", "", {"classifier": 2}),
    "torchvision-regnet-x": Expected("torchvision", "regnetx_004_tv", "", {"classifier": 2}),
    "lightly-train": Expected(
        "lightly-train",
        VIT,
        "state_dict/student_embedding_model.wrapped_model._model.",
        {"teacher": 38, "projection head": 8, "loss": 1},
        "state_dict/teacher_embedding_model.wrapped_model._model.",
        ([127.5] * 3, [63.75] * 3),
    ),
    "timm": Expected(
        "timm", VIT, "state_dict/", {"classifier": 2, "state_dict_ema's": 32}, "state_dict_ema/", HALVES
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", [key for key in EXPECTED])
def test_source(key, save, tmp_path):
    wanted, path = EXPECTED[key], save(PROJECTS[key]())
    result = convert(path, tmp_path / "out.pkl", source=wanted.source)
    source = result.source
    assert (source.layout, source.arch, source.location) == (wanted.row, wanted.name, wanted.location)
    training = {"optimizer's", "dino_loss's"}
    assert {group: count for group, count in source.dropped.items() if group not in training} == wanted.dropped
    assert any("--ema" in note for note in source.notes) == bool(wanted.ema)
    config = yaml.safe_load((tmp_path / "out.yaml").read_text())
    assert config["MODEL"]["BACKBONE"]["NAME"] == "build_timm_fpn_backbone"
    assert config["MODEL"]["TIMM"]["NAME"] == wanted.name and config["INPUT"]["FORMAT"] == "RGB"
    for key_of, values in zip(("PIXEL_MEAN", "PIXEL_STD"), wanted.pixels, strict=True):
        assert config["MODEL"][key_of] == pytest.approx(values, abs=0.01)
    differences = result.differences["eval"]
    assert len({name.split()[1] for name in differences}) == 2, "native and detection size"
    assert all(difference.relative < 1e-5 for difference in differences.values())
    levels = {name.split()[0] for name in differences}
    plain = wanted.name.startswith(("vit", "beit"))
    assert levels >= ({"last_feat"} if plain else {"res2", "res3", "res4", "res5"})
    with open(tmp_path / "out.pkl", "rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] and content["config"]["MODEL"]["TIMM"] == {"NAME": wanted.name}
    assert all(name.startswith("network.") for name in content["model"])
    assert json.loads(json.dumps(result.as_dict()))["source"]["arch"] == wanted.name
    if wanted.ema:
        assert load_source(path, ema=True)[0].location == wanted.ema


def test_the_average_has_other_weights(save):
    path = save(PROJECTS["mocov3"]())
    online, average = load_source(path)[1], load_source(path, ema=True)[1]
    assert torch.equal(online["blocks.1.attn.qkv.weight"], vit(0)["blocks.1.attn.qkv.weight"])
    assert torch.equal(average["blocks.1.attn.qkv.weight"], vit(1)["blocks.1.attn.qkv.weight"])


def test_every_project_is_expected_and_every_row_is_tested():
    assert set(PROJECTS) == set(EXPECTED)
    assert {row.name for row in TIMM_LAYOUTS} == {wanted.row for wanted in EXPECTED.values()}


def test_every_row_is_in_the_docs():
    text = (ROOT / "docs" / "timm_convert.md").read_text()
    lines = [re.sub(r"[`\\]", "", line) for line in re.findall(r"^\| *(.*?) *\|$", text, re.MULTILINE)]
    rows = [tuple(cell.strip() for cell in line.split(" | ")[:3]) for line in lines]
    assert [row for row in rows if row in {(r.name, r.project, r.rule) for r in TIMM_LAYOUTS}] == [
        (row.name, row.project, row.rule) for row in TIMM_LAYOUTS
    ]


@pytest.fixture
def hub(tmp_path):
    """A folder as timm's on the hub: ``hub(pixels, weights)``."""

    def make(settings, weights=None, name=VIT):
        folder = tmp_path / "hub"
        folder.mkdir()
        weights = weights or weights_of(VIT)
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / "model.safetensors")
        card = {"architecture": name, "num_classes": 1000, "pretrained_cfg": {"tag": "dino", **settings}}
        (folder / "config.json").write_text(json.dumps(card))
        return folder

    return make


def test_a_folder_with_config_json(hub, tmp_path):
    folder = hub({"mean": [0.4, 0.45, 0.5], "std": [0.2, 0.21, 0.22]})
    result = convert(folder, tmp_path / "out.pkl")
    assert (result.source.layout, result.source.arch) == ("timm", VIT)
    assert result.config["MODEL"]["PIXEL_MEAN"] == [102.0, 114.75, 127.5]
    assert result.config["MODEL"]["PIXEL_STD"] == [51.0, 53.55, 56.1]


def test_timms_weights_named_by_the_user(save, tmp_path):
    path = save(weights_of("vit_tiny_patch16_224"), "vit.pth")
    for tag, pixels in (("augreg_in21k", HALVES),):
        result = convert(path, tmp_path / "out.pkl", arch=f"vit_tiny_patch16_224.{tag}")
        assert result.config["MODEL"]["PIXEL_MEAN"] == pixels[0]


def test_any_other_network_of_timm_by_its_name(save, tmp_path):
    path = save(weights_of("test_efficientnet"))
    result = convert(path, tmp_path / "out.pkl", arch="test_efficientnet.r160_in1k")
    assert result.source.arch == "test_efficientnet" and set(result.differences) == {"eval", "train"}
    assert {name.split()[0] for name in result.differences["train"]} == {"res2", "res3", "res4", "res5"}


def test_swin_v2_by_its_name(save, tmp_path):
    weights = {
        **weights_of("swinv2_tiny_window8_256"),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(64),
    }
    result = convert(save(weights), tmp_path / "out.pkl", arch="swinv2_tiny_window8_256")
    assert result.source.layout == "swin" and len(result.differences["eval"]) == 8


def test_half_precision_becomes_float32(save, tmp_path):
    path = save({name: value.half() for name, value in vit().items()})
    result = convert(path, tmp_path / "out.pkl")
    assert any("float16, and are now float32" in note for note in result.source.notes)


def test_the_file_as_a_backbone_in_python(save, tmp_path):
    result = convert(save(vit()), tmp_path / "out.pkl")
    backbone = load_backbone(tmp_path / "out.pkl")
    images = torch.zeros(1, 3, 40, 70)  # the mean pixel, as both normalise it
    (found,) = find_networks(vit())
    wanted = reference(found, vit(), VIT)(torch.zeros(1, 3, 48, 80))[0]
    got = backbone(images)["last_feat"]
    assert result.source.arch == VIT and got.shape == (1, 64, 3, 5) and torch.allclose(got, wanted, atol=1e-5)


class Detector(nn.Module):
    """As much of a detector as its checkpointer asks for."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)


@pytest.mark.parametrize(
    "key", ["dinov2-registers", "beitv2", "convnextv2", "torchvision-swin", "torchvision-regnet-y"]
)
def test_a_detector_with_the_written_config_loads_it(key, save, tmp_path):
    """The config as an overlay, as ``loco-det evaluate`` has it, on a recipe of a ResNet."""
    convert(save(PROJECTS[key]()), tmp_path / "out.pkl")
    cfg = get_cfg()
    add_loco_config(cfg)
    merge_config_file(cfg, CONFIGS / "coco_loco_frozen.yaml")
    merge_config_file(cfg, tmp_path / "out.yaml")
    cfg.MODEL.BACKBONE.FREEZE_AT = 99
    check_network(cfg)
    detector = Detector(cfg)
    GuardedCheckpointer(detector).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    with open(tmp_path / "out.pkl", "rb") as file:
        model = pickle.load(file)["model"]
    for name, value in detector.backbone.bottom_up.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, torch.as_tensor(model[name])), name
    assert not any(parameter.requires_grad for parameter in detector.backbone.bottom_up.parameters())
    assert set(detector.backbone(torch.zeros(1, 3, 64, 96))) == {"p2", "p3", "p4", "p5", "p6"}


def test_the_way_back_says_what_is_missing(save, tmp_path):
    convert(save(vit()), tmp_path / "out.pkl")
    with pytest.raises(ValueError, match="a network of timm, whose names are timm's own behind 'network.'"):
        convert_back(tmp_path / "out.pkl", tmp_path / "back.pth")


def test_our_own_definition_is_dinov2s():
    """timm's network, whose filter function moves DINOv2's positions, computes what is written out by its names."""
    content = PROJECTS["dinov2-registers"]()
    (found,) = find_networks(content)
    weights = {name: value for name, value in content.items() if name != "mask_token"}
    images = torch.randn(1, 3, 56, 42)
    got = reference(found, weights, REGISTERS)(images)[1]
    network = timm.create_model(REGISTERS, num_classes=0, dynamic_img_size=True)
    network.load_state_dict(to_timm(weights, "vit", network))
    wanted = network.eval().forward_features(images)[:, 5:].transpose(1, 2).reshape(got.shape)
    assert torch.allclose(got, wanted, atol=1e-5)

"""Whole conversions: a detector is filled with the very network, and both files say what it is and needs."""

import datetime
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn
from weights import SMALL, random_weights, same, save

import loco_det.convert as package
from loco_det.config import add_loco_config
from loco_det.convert import convert, convert_back
from loco_det.convert.sources.conventions import SWAV
from loco_det.engine.checkpoint import GuardedCheckpointer
from pretrain.encoders import STAGE_NAMES, build_encoder, parse_encoder

BASE = Path(__file__).parents[3] / "configs" / "detection" / "_base_mask_rcnn_r50_fpn.yaml"


def ours(arch, weights):
    """What tools/pretrain.py saves."""
    model = {f"encoder.{name}": tensor for name, tensor in weights.items()}
    return {"format": "loco-det pretraining", "encoder": arch, "iteration": 9, "model": model}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint that converts in no time."""
    return save(random_weights(SMALL), tmp_path_factory.mktemp("small"))


def written(path):
    return pickle.loads(Path(path).read_bytes())


def detectron2(path, **keys):
    """The config of a YAML file, for the CPU and with small heads."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(path))
    heads = {"ROI_BOX_HEAD.CONV_DIM": 8, "ROI_BOX_HEAD.FC_DIM": 8, "ROI_MASK_HEAD.CONV_DIM": 8, "FPN.OUT_CHANNELS": 8}
    for key, value in {"DEVICE": "cpu", **heads, **keys}.items():
        cfg.merge_from_list([f"MODEL.{key}", value])
    return cfg


# --- into a detector --------------------------------------------------------------------------------------------------


DETECTORS = [("resnet18", "SyncBN", 0), ("resnet18", "SyncBN", 5), ("resnet50x0.25", "FrozenBN", 0)]
DETECTORS += [("resnet18x0.5", "SyncBN", 0), ("resnet18x0.5", "FrozenBN", 5), ("resnet18x0.25_same", "BN", 2)]


@pytest.mark.parametrize("arch, norm, freeze_at", DETECTORS)
def test_the_written_config_builds_a_detector_that_computes_the_networks_features(tmp_path, arch, norm, freeze_at):
    weights, options = random_weights(arch), {"source": "byol"} if arch.endswith("_same") else {}
    result = convert(save(weights, tmp_path), tmp_path / "out.pkl", base=BASE, **options)
    cfg = detectron2(tmp_path / "out.yaml", **{"RESNETS.NORM": norm, "BACKBONE.FREEZE_AT": freeze_at})
    model = build_model(cfg)
    rest = GuardedCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert set(rest) >= set(result.metadata)  # handed back, not loaded into anything
    source = build_encoder(arch)
    source.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        got, wanted = model.backbone.bottom_up.eval()(images), source.eval()(images)
    for stage in STAGE_NAMES:
        error = (got[stage] - wanted[stage]).abs().max()
        assert error <= (1e-6 * wanted[stage].abs().max() if norm == "FrozenBN" or freeze_at else 0), stage
    assert list(model.backbone(images)) == ["p2", "p3", "p4", "p5", "p6"]


@pytest.mark.parametrize("arch, stages", [("presnet50", ["res2", "res4", "res5", "res7"]), ("shufflenetv2_50", None)])
def test_other_encoders_fill_a_detector_bit_for_bit(tmp_path, arch, stages):
    weights = random_weights(arch)
    result = convert(save(ours(arch, weights), tmp_path), tmp_path / "out.pkl", base=BASE)
    assert result.config["MODEL"]["FPN"]["IN_FEATURES"] == (stages or list(STAGE_NAMES))
    assert list(result.differences["train"]) == list(build_encoder(arch).stage_names)
    cfg = detectron2(tmp_path / "out.yaml")
    model = build_model(cfg)
    GuardedCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert same(model.backbone.bottom_up.encoder.state_dict(), weights)
    convert_back(tmp_path / "out.pkl", tmp_path / "back.pth")
    assert same(torch.load(tmp_path / "back.pth"), weights)


def test_resnet50_is_exact_and_quiet(network, tmp_path, caplog):
    path = save({"state_dict": nn.DataParallel(network("resnet50", 1)).state_dict()}, tmp_path)
    caplog.set_level("INFO")
    state = torch.random.get_rng_state()
    result = convert(path, tmp_path / "out.pkl", arch="resnet50")
    assert torch.equal(torch.random.get_rng_state(), state) and not caplog.records
    source = result.source
    assert (source.arch, source.layout, source.location) == ("resnet50", "torchvision", "state_dict/")
    assert (result.entries, source.dropped, source.notes) == (318, {"fc": 2}, [])
    assert {d.absolute for stages in result.differences.values() for d in stages.values()} == {0}
    content = written(tmp_path / "out.pkl")
    assert (content["__author__"], content["matching_heuristics"]) == ("loco-det", True)
    assert len(content["model"]) == 318 and all(isinstance(value, np.ndarray) for value in content["model"].values())


@pytest.mark.parametrize("stated", [SMALL, "resnet18_stem16_1x16d_out16"])
def test_our_checkpoint_loses_its_decoders_only(tmp_path, stated):
    weights = random_weights(SMALL)
    content = ours(stated, weights)
    content["model"] |= {f"decoders.res{i}.0.weight": torch.zeros(2) for i in (3, 4, 5)}
    result = convert(save(content, tmp_path), tmp_path / "out.pkl")
    assert (result.source.layout, result.source.dropped) == ("loco-det", {"decoders": 3})
    model = {name: torch.from_numpy(array) for name, array in written(result.output)["model"].items()}
    assert same(model, {f"encoder.{name}": tensor for name, tensor in weights.items()})


PIXELS = {"PIXEL_MEAN": [1, 2, 3], "PIXEL_STD": [1, 2, 3]}


@pytest.mark.parametrize("run", [{"images": 12}, None])
def test_the_pretraining_is_written_into_the_file(tmp_path, run):
    """By it the weights are compared with those of a published row; of a file without it nothing is known."""
    content = {**ours(SMALL, random_weights(SMALL)), "config": yaml.safe_dump({"MODEL": PIXELS}), "iteration": 8}
    content = {**content, "run": run} if run else {key: value for key, value in content.items() if key != "run"}
    found = written(convert(save(content, tmp_path), tmp_path / "out.pkl").output)["pretraining"]
    assert found == ({"config": {"MODEL": PIXELS}, "images": 12, "iterations": 9} if run else None)


@pytest.mark.parametrize(
    "change, note",
    [
        ("no counters", []),
        ("half", ["102 tensors were float16, and are now float32"]),
        ("bfloat16", ["102 tensors were bfloat16, and are now float32"]),
        ("double", ["102 tensors were float64, and are now float32"]),
        ("float counters", []),
        ("channels last", []),
        ("parameters", []),
    ],
)
def test_harmless_variants_of_the_weights_are_accepted(tmp_path, change, note):
    weights = random_weights(SMALL)
    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}.get(change, torch.float32)
    weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights.items()}
    changed = dict(weights)
    for name, tensor in weights.items():
        if change == "no counters" and "num_batches" in name:
            del changed[name]
            weights[name] = torch.tensor(0)
        elif change == "float counters" and "num_batches" in name:
            changed[name] = tensor.float()
        elif change == "channels last" and tensor.dim() == 4:
            changed[name] = tensor.contiguous(memory_format=torch.channels_last)
        elif change == "parameters" and tensor.is_floating_point():
            changed[name] = nn.Parameter(tensor)
    path = save({"model": changed}, tmp_path)
    result = convert(path, tmp_path / "out.pkl")
    assert [line for line in result.source.notes if "float" in line] == result.source.notes == [
        line.replace("102", str(sum(t.dim() > 0 for t in weights.values()))) for line in note
    ]  # fmt: skip
    wanted = {f"encoder.{n}": t.float() if t.is_floating_point() else t for n, t in weights.items()}
    assert same({name: torch.from_numpy(array) for name, array in written(result.output)["model"].items()}, wanted)


# --- what is written beside the weights -------------------------------------------------------------------------------


RESNET50 = {"DEPTH": 50, "STEM_OUT_CHANNELS": 64, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64, "RES2_OUT_CHANNELS": 256}
NEEDS = {  # of Detectron2's ResNet
    "resnet18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "resnet50": {},
    "resnet101x0.25": {"DEPTH": 101, "STEM_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 16, "RES2_OUT_CHANNELS": 64},
    "wide_resnet50_2": {"WIDTH_PER_GROUP": 128},
    "resnext50_32x4d": {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4},
}


@pytest.mark.parametrize("arch", NEEDS)
def test_what_detectron2s_resnet_needs(arch):
    conventions = SWAV._replace(format="BGR", stride_in_1x1=True)
    config = package.conversion.detectron2_config(parse_encoder(arch), conventions, "w.pkl")
    assert config == {
        "MODEL": {
            "WEIGHTS": "w.pkl", "PIXEL_MEAN": [123.675, 116.28, 103.53], "PIXEL_STD": [58.14, 57.12, 57.375],
            "RESNETS": {**RESNET50, **NEEDS[arch], "STRIDE_IN_1X1": True, "RES5_DILATION": 1},
        },
        "INPUT": {"FORMAT": "BGR"},
    }  # fmt: skip


def test_the_published_figure_of_the_base_is_not_that_of_these_weights(small, tmp_path):
    base = BASE.parents[1] / "coco_loco_frozen.yaml"
    assert detectron2(base).PUBLISHED.BOX_AP > 0
    published = detectron2(convert(small, tmp_path / "out.pkl", base=base).config_file).PUBLISHED
    assert (published.ROW, published.BOX_AP, published.MASK_AP) == ("", 0, 0)


@pytest.mark.parametrize("name", ["out.pkl", "r50 'a' \"b\": {c} #1.pkl", "é漢.pkl", "v1.0.pkl"])
def test_the_config_is_what_the_file_says_and_valid(small, tmp_path, name):
    result = convert(small, tmp_path / name, base=BASE)
    assert result.config_file == str(tmp_path / name)[:-4] + ".yaml"
    text = Path(result.config_file).read_text()
    content = yaml.safe_load(text)
    base = content.pop("_BASE_")  # relative, so that the folder can be moved with what is around it
    assert not os.path.isabs(base) and (tmp_path / base).resolve() == BASE
    assert content == result.config == written(result.output)["config"]
    cfg = detectron2(result.config_file)
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.ENCODER) == (str(tmp_path / name), SMALL)
    assert (cfg.INPUT.FORMAT, cfg.MODEL.MASK_ON) == ("RGB", True)
    assert cfg.MODEL.BACKBONE.NAME == "build_encoder_fpn_backbone"


def test_both_files_say_where_they_come_from(small, tmp_path):
    before = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    result = convert(small, tmp_path / "out.pkl")
    assert before <= datetime.datetime.fromisoformat(result.date) <= datetime.datetime.now(datetime.timezone.utc)
    assert result.date.endswith("+00:00")
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    wanted = {"source": "checkpoint.pth", "layout": "torchvision", "location": "", "arch": SMALL}
    wanted |= {"sha256": digest, "date": result.date}
    assert result.metadata == wanted and wanted.items() <= written(result.output).items()
    lines = Path(result.config_file).read_text().splitlines()
    assert all(f'# {key}: "{value}"' in lines for key, value in wanted.items())
    assert result.size == os.path.getsize(result.output) and result.entries == len(written(result.output)["model"])


@pytest.mark.parametrize("newline", ["\n", "\r", "\x85", "\u2028"])
def test_names_in_a_checkpoint_cannot_write_into_the_config(tmp_path, newline):
    """Detectron2 reads its configs with YAML's unsafe loader: a line of one's own would be code of one's own."""
    key = f"a{newline}INPUT: !!python/object/apply:os._exit [3]{newline}#"
    content = {key: {f"encoder_q.{name}": tensor for name, tensor in random_weights(SMALL).items()}}
    path = save(content, tmp_path).rename(tmp_path / f"x{newline}INPUT: 3{newline}#.pth")
    result = convert(path, tmp_path / "out.pkl")
    assert result.source.location.startswith(key)
    text = (tmp_path / "out.yaml").read_bytes().decode()
    assert yaml.safe_load(text) == result.config
    assert text.index("\nMODEL:") < text.index("INPUT:", text.index("\nMODEL:"))


def test_the_same_input_gives_the_same_weights(small, tmp_path):
    contents = []
    for name in ("a.pkl", "b.pkl"):
        result = convert(str(small), str(tmp_path / name))  # names as a command line gives them
        assert result.output == str(tmp_path / name)
        contents.append(written(result.output))
        contents[-1]["config"]["MODEL"]["WEIGHTS"] = contents[-1]["date"] = None
    assert pickle.dumps(contents[0]) == pickle.dumps(contents[1])


def test_the_package_exports_what_it_says():
    assert all(hasattr(package, name) for name in package.__all__)

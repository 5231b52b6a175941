"""Every row of ``LAYOUTS``: a checkpoint made as that project makes it is recognised, and the right network taken.

The online (trained) network and its moving average have different weights, so that a mistake between them shows.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from frameworks import FRAMEWORKS
from projects import RESEARCH

from loco_det.convert import LAYOUTS, convert, load_source
from loco_det.convert.sources.choose import choose

HERE = Path(__file__).resolve().parent
PROJECTS = {**RESEARCH, **FRAMEWORKS}

IMAGENET = {"PIXEL_MEAN": [123.675, 116.28, 103.53], "PIXEL_STD": [58.395, 57.12, 57.375], "FORMAT": "RGB"}
ZERO_TO_ONE = {"PIXEL_MEAN": [0, 0, 0], "PIXEL_STD": [255, 255, 255], "FORMAT": "RGB"}
SWAV = {**IMAGENET, "PIXEL_STD": [58.14, 57.12, 57.375]}  # 0.228 for red
BGR = {"PIXEL_MEAN": [103.53, 116.28, 123.675], "PIXEL_STD": [1, 1, 1], "FORMAT": "BGR"}  # Detectron2's own
R18 = 120  # entries of a ResNet-18 without its classifier
POOLS = {f"pool_conv_block_{i}": 6 for i in (1, 2, 3, 4)}


class Expected(NamedTuple):
    """What a checkpoint of ``PROJECTS`` must be found to be."""

    row: str  # name in LAYOUTS
    project: str
    location: str
    dropped: dict
    ema: str | None = None  # location of the moving average's network
    pixels: dict = IMAGENET
    arch: str = "resnet18"
    source: str = "auto"


EXPECTED = {
    "loco-det": Expected("loco-det", "ours (tools/pretrain.py)", "model/encoder.", {"decoders": 6}),
    "loco-det-encoder": Expected(
        "loco-det", "ours, an encoder alone (tools/convert_from_d2.py)", "", {}, arch="shufflenetv2_50"
    ),
    "detectron2": Expected(
        "detectron2",
        "Detectron2, backbones and detectors",
        "model/backbone.bottom_up.",
        {"backbone": 2, "proposal_generator": 2},
        pixels=BGR,
    ),
    "detectron2-backbone": Expected("detectron2", "Detectron2, backbones and detectors", "", {}, pixels=BGR),
    "detectron2-encoder": Expected(
        "detectron2",
        "Detectron2, an encoder of ours",
        "model/backbone.bottom_up.encoder.",
        {"roi_heads": 2},
        pixels=BGR,
    ),
    "moco": Expected(
        "moco",
        "MoCo v1 and v2, PyContrast's",
        "state_dict/encoder_q.",
        {"fc": 4, "encoder_k": R18 + 4, "queue": 1, "queue_ptr": 1},
        ema="state_dict/encoder_k.",
    ),
    "moco-v1": Expected(
        "moco",
        "MoCo v1 and v2, PyContrast's",
        "state_dict/encoder_q.",
        {"fc": 2, "encoder_k": R18 + 2, "queue": 1, "queue_ptr": 1},
        ema="state_dict/encoder_k.",
    ),
    "mocov3": Expected(
        "mocov3",
        "MoCo v3",
        "state_dict/base_encoder.",
        {"fc": 10, "momentum_encoder": R18 + 10, "predictor": 7},
        ema="state_dict/momentum_encoder.",
    ),
    "byol-pytorch": Expected(
        "byol-pytorch",
        "byol-pytorch",
        "online_encoder.net.",
        {"fc": 2, "net": R18 + 2, "online_encoder": 9, "online_predictor": 9, "target_encoder": R18 + 11},
        ema="target_encoder.net.",
    ),
    "byol-pytorch-lightning": Expected(
        "byol-pytorch",
        "byol-pytorch",
        "state_dict/learner.online_encoder.net.",
        {"fc": 2, "learner": 2 * R18 + 31},
        ema="state_dict/learner.target_encoder.net.",
    ),
    "solo-learn": Expected(
        "solo-learn",
        "solo-learn",
        "state_dict/backbone.",
        {
            "momentum_backbone": R18,
            "classifier": 2,
            "momentum_classifier": 2,
            "projector": 9,
            "momentum_projector": 9,
            "predictor": 9,
        },
        ema="state_dict/momentum_backbone.",
    ),
    "solo-learn-older": Expected(
        "solo-learn",
        "solo-learn",
        "state_dict/encoder.",
        {
            "momentum_encoder": R18,
            "classifier": 2,
            "momentum_classifier": 2,
            "projector": 9,
            "momentum_projector": 9,
            "predictor": 9,
        },
        ema="state_dict/momentum_encoder.",
    ),
    "solo-learn-barlow": Expected(
        "solo-learn", "solo-learn", "state_dict/backbone.", {"classifier": 2, "projector": 16}
    ),
    "pixpro": Expected(
        "pixpro",
        "PixPro",
        "model/encoder.",
        {"encoder_k": R18, "projector": 9, "projector_k": 9, "value_transform": 2},
        ema="model/encoder_k.",
    ),
    "pycontrast": Expected(
        "pycontrast",
        "PyContrast (InfoMin, InsDis, PIRL)",
        "model/encoder.",
        {"head": 4, "head_jig": 6},
        ema="model_ema/encoder.",
    ),
    "pycontrast-insdis": Expected("pycontrast", "PyContrast (InfoMin, InsDis, PIRL)", "model/encoder.", {"head": 2}),
    "simsiam": Expected("simsiam", "SimSiam", "state_dict/encoder.", {"fc": 17, "predictor": 8}),
    "blockwise": Expected(
        "blockwise",
        "Blockwise Barlow Twins",
        "model/backbone.",
        {**POOLS, "projector_list": 52, "bn": 3},
        arch="resnet50",
    ),
    "blockwise-backbone": Expected("blockwise", "Blockwise Barlow Twins", "", {**POOLS}, arch="resnet50"),
    "barlow": Expected("barlow", "Barlow Twins", "model/backbone.", {"projector": 13, "bn": 3}),
    "vicreg": Expected("vicreg", "VICReg", "model/backbone.", {"projector": 15}),
    "dino": Expected("dino", "DINO", "student/backbone.", {"head": 8}, ema="teacher/backbone."),
    "huggingface": Expected(
        "huggingface",
        "Hugging Face's transformers: ResNetForImageClassification, ResNetModel",
        "resnet.",
        {"classifier": 2},
    ),
    "huggingface-model": Expected(
        "huggingface", "Hugging Face's transformers: ResNetForImageClassification, ResNetModel", "", {}
    ),
    "vissl": Expected("vissl", "VISSL", "classy_state_dict/base_model/model/trunk/_feature_blocks.", {}),
    "simclrv2": Expected(
        "simclrv2", "SimCLR v2 by SimCLRv2-Pytorch", "resnet/", {"fc": 2}, pixels=ZERO_TO_ONE, arch="resnet50"
    ),
    "simclr": Expected("simclr", "SimCLR by simclr-converter", "state_dict/", {"fc": 2}, pixels=ZERO_TO_ONE),
    "swav": Expected(
        "swav", "SwAV, DeepCluster v2", "state_dict/", {"projection_head": 9, "prototypes": 1}, pixels=SWAV
    ),
    "swav-released": Expected("swav", "SwAV, DeepCluster v2", "", {"projection_head": 9, "prototypes": 1}, pixels=SWAV),
    "deepclusterv2": Expected(
        "swav", "SwAV, DeepCluster v2", "state_dict/", {"projection_head": 9, "prototypes": 3}, pixels=SWAV
    ),
    "openmmlab-ema-hook": Expected(
        "openmmlab",
        "MMPretrain with EMAHook",
        "ema_state_dict/backbone.",
        {"steps": 1, "head": 2},
        ema="state_dict/backbone.",
    ),
    "openmmlab": Expected(
        "openmmlab",
        "MMSelfSup, MMPretrain, DenseCL, OpenSelfSup",
        "state_dict/backbone.",
        {"neck": 4, "queue": 1, "encoder_k": R18 + 5},
        ema="state_dict/encoder_k.0.",
    ),
    "openmmlab-byol": Expected(
        "openmmlab",
        "MMSelfSup, MMPretrain, DenseCL, OpenSelfSup",
        "state_dict/backbone.",
        {"neck": 4, "target_net": R18 + 5},
        ema="state_dict/target_net.0.",
    ),
    "openmmlab-mocov3": Expected(
        "openmmlab",
        "MMSelfSup, MMPretrain, DenseCL, OpenSelfSup",
        "state_dict/backbone.",
        {"neck": 4, "momentum_encoder": R18 + 5},
        ema="state_dict/momentum_encoder.0.",
    ),
    "openmmlab-densecl": Expected(
        "openmmlab",
        "MMSelfSup, MMPretrain, DenseCL, OpenSelfSup",
        "state_dict/backbone.",
        {"encoder_q": R18 + 8, "encoder_k": R18 + 8, "queue": 1, "queue_ptr": 1, "queue2": 1, "queue2_ptr": 1},
        ema="state_dict/encoder_k.0.",
    ),
    "densecl": Expected("densecl", "DenseCL, extracted", "state_dict/", {}),
    "lightly-train": Expected(
        "lightly-train",
        "LightlyTrain (what it exports has torchvision's names)",
        "state_dict/embedding_model.wrapped_model._features.",
        {"projection_head": 9},
    ),
    "lightly-train-dino": Expected(
        "lightly-train",
        "LightlyTrain (what it exports has torchvision's names)",
        "state_dict/student_embedding_model.wrapped_model._model.",
        {
            "fc": 2,
            "teacher_embedding_model": R18 + 2,
            "student_projection_head": 4,
            "teacher_projection_head": 4,
            "criterion": 1,
        },
        ema="state_dict/teacher_embedding_model.wrapped_model._model.",
    ),
    "lightly": Expected(
        "lightly",
        "lightly",
        "state_dict/backbone.",
        {"projection_head": 8, "prediction_head": 8, "backbone_momentum": R18, "projection_head_momentum": 8},
        ema="state_dict/backbone_momentum.",
    ),
    "lightly-named": Expected("lightly", "lightly", "state_dict/backbone.", {"projection_head": 8}),
    "lightly-dino": Expected(
        "lightly",
        "lightly",
        "state_dict/student_backbone.",
        {"teacher_backbone": R18, "student_head": 4, "teacher_head": 4},
        ema="state_dict/teacher_backbone.",
    ),
    "lightly-state-dict": Expected(
        "lightly",
        "lightly",
        "backbone.",
        {"projection_head": 8, "prediction_head": 8, "backbone_momentum": R18, "projection_head_momentum": 8},
        ema="backbone_momentum.",
    ),
    "lightly-backbone": Expected("lightly", "lightly, the backbone alone", "", {}),
    "timm": Expected(
        "timm", "timm's train.py, PyTorch's ImageNet example", "state_dict/", {"fc": 2}, ema="state_dict_ema/"
    ),
    "pytorch-examples": Expected("timm", "timm's train.py, PyTorch's ImageNet example", "state_dict/", {"fc": 2}),
    "torchvision-ema": Expected("torchvision", "torchvision, also with EMA", "model/", {"fc": 2}, ema="model_ema/"),
    "torchvision": Expected(
        "torchvision", "torchvision's names, bare: timm, Barlow Twins, VICReg, DINO", "", {"fc": 2}
    ),
    "torchvision-model": Expected(
        "torchvision", "torchvision's names, bare: timm, Barlow Twins, VICReg, DINO", "model/", {"fc": 2}
    ),
    "barlow-backbone": Expected("torchvision", "torchvision's names, bare: timm, Barlow Twins, VICReg, DINO", "", {}),
    "byol": Expected("byol", "BYOL by byol-convert", "", {"fc": 2}, arch="resnet18_same", source="byol"),
}


def write(key, folder, network):
    """The checkpoint of a project, what it holds, and its online network and moving average as they were."""
    arch = EXPECTED[key].arch.removesuffix("_same")
    content, path = PROJECTS[key](network(arch, 0), network(arch, 1)), folder / "checkpoint.pth"
    torch.save(content, path)
    if EXPECTED[key].row == "detectron2":  # its config does not say what is Detectron2's default
        (folder / "config.yaml").write_text("MODEL: {RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}}\n")
    if EXPECTED[key].row == "huggingface":  # what save_pretrained writes beside it
        (folder / "config.json").write_text('{"model_type": "resnet"}')
        pixels = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255}
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return path, content, network(arch, 0), network(arch, 1)


@pytest.mark.parametrize("key", EXPECTED)
def test_source(key, network, assert_written, assert_same_bits, tmp_path):
    wanted = EXPECTED[key]
    path, content, online, average = write(key, tmp_path, network)
    counters = 0 if key == "byol" else None  # it has none
    source, weights = load_source(path, source=wanted.source)
    assert (source.layout, source.project, source.arch) == (wanted.row, wanted.project, wanted.arch)
    assert (source.location, source.dropped) == (wanted.location, wanted.dropped)
    assert bool(source.notes) == bool(wanted.ema)
    pixels = source.conventions
    assert {"PIXEL_MEAN": [*pixels.mean], "PIXEL_STD": [*pixels.std], "FORMAT": pixels.format} == wanted.pixels
    assert_same_bits(weights, online, counters)
    named, found, _ = choose(content, source=wanted.row)
    assert (named.project, found.location) == (wanted.project, wanted.location)
    if wanted.ema:
        source, weights = load_source(path, ema=True)
        assert (source.project, source.arch, source.location) == (wanted.project, wanted.arch, wanted.ema)
        assert not source.notes and source.conventions == pixels
        assert_same_bits(weights, average)
    else:
        with pytest.raises(ValueError, match="holds no moving average's network"):
            choose(content, source=wanted.source, ema=True)
    if key == next(key for key, other in EXPECTED.items() if other[:2] == wanted[:2]):  # one for each row
        result = convert(path, tmp_path / "out.pkl", source=wanted.source)
        assert_written(result.output, online, counters)


def test_the_config_says_what_the_pixels_were(network, tmp_path):
    path, *_ = write("swav", tmp_path, network)
    convert(path, tmp_path / "out.pkl")
    config = yaml.safe_load((tmp_path / "out.yaml").read_text())
    assert {**config["MODEL"], **config["INPUT"]}.items() >= SWAV.items()


def test_the_average_is_written_as_well(network, assert_written, tmp_path):
    path, _, _, average = write("moco", tmp_path, network)
    assert_written(convert(path, tmp_path / "ema.pkl", ema=True).output, average)


def test_every_row_is_tested():
    assert set(PROJECTS) == set(EXPECTED)
    assert {(row.name, row.project) for row in LAYOUTS} == {
        (wanted.row, wanted.project) for wanted in EXPECTED.values()
    }


def test_a_row_that_is_asked_for_and_does_not_fit_is_refused(network):
    content = PROJECTS["moco"](network(seed=0), network(seed=1))
    for name in sorted({row.name for row in LAYOUTS} - {"moco"}):
        with pytest.raises(ValueError, match=f"laid out as {name}[:,].*state_dict/encoder_[qk]"):
            choose(content, source=name)


@pytest.mark.parametrize("key", ["moco", "mocov3", "dino", "timm"])
def test_a_file_with_the_average_alone(key, network, assert_same_bits, tmp_path):
    """What is left when the online network is taken away is never taken in its place unasked."""
    wanted = EXPECTED[key]
    content = PROJECTS[key](network(seed=0), network(seed=1))
    dictionary, _, prefix = wanted.location.partition("/")
    kept = {name: tensor for name, tensor in content[dictionary].items() if f"{prefix}layer" not in f".{name}"}
    content[dictionary] = {name: tensor for name, tensor in kept.items()}
    if dictionary != wanted.ema.partition("/")[0]:
        del content[dictionary]
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    source, weights = load_source(path, ema=True)
    assert (source.layout, source.location) == (wanted.row, wanted.ema)
    assert_same_bits(weights, network(seed=1))
    with pytest.raises(ValueError, match="add --ema"):
        load_source(path)


# --- docs ----------------------------------------------------------------------------------------------------------


def sources_in_docs():
    """The cells of the table under the heading "Sources" of docs/conversion.md."""
    text = (HERE.parents[2] / "docs" / "conversion.md").read_text()
    section = re.search(r"^#+ [^\n]*Sources[^\n]*\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "docs/conversion.md has no heading with 'Sources'"
    lines = re.findall(r"^\| *(.*?) *\|$", section[1], re.MULTILINE)
    plain = [re.sub(r"[`\\]", "", line) for line in lines]
    return [[cell.strip() for cell in line.split(" | ")] for line in plain[2:]]


def test_the_table_in_docs_lists_every_row_and_the_test_that_proves_it():
    rows = sources_in_docs()
    assert [tuple(cells[:3]) for cells in rows] == [(row.name, row.project, row.rule) for row in LAYOUTS]
    tests = {f"test_projects.py::test_source[{key}]": wanted for key, wanted in EXPECTED.items()}
    for name, project, _, proofs in rows:
        proofs = re.findall(r"test_\w+\.py::\w+(?:\[[^\]]*\])?", proofs)
        assert proofs, f"no test for {project}"
        for proof in proofs:
            if proof in tests:
                assert (tests[proof].row, tests[proof].project) == (name, project)
            else:
                file, test = re.match(r"(.*)::(\w+)", proof).groups()
                assert f"def {test}(" in (HERE / file).read_text(), proof

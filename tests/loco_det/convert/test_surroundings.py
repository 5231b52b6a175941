"""What no weight tells (strides, dilation, colours, own code) is read where it stands, or the file is refused."""

import argparse
import re

import numpy as np
import pytest
import torch
import yaml
from weights import random_weights

from loco_det.convert import convert, convert_back
from loco_det.convert.detectron2_names import to_detectron2

BOTTLENECKS = "resnet50_stem16_1x16d_out64"  # narrow, and in Detectron2's ResNet


def put(folder, content, config=None):
    torch.save(content, folder / "in.pth")
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "in.pth"


def detector(arch=BOTTLENECKS, prefix="backbone.bottom_up."):
    return {"model": {prefix + name: value for name, value in to_detectron2(random_weights(arch)).items()}}


def refused(path, message, **options):
    before = sorted(path.parent.iterdir())
    with pytest.raises(ValueError, match=message) as caught:
        convert(path, path.parent / "out.pkl", **options)
    assert "\n" not in str(caught.value) and sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize(
    "text, said",
    [
        ("backbone=dict(type='ResNet', depth=50, style='caffe')", "style='caffe"),
        ("img_norm_cfg = dict(mean=[103.53], to_rgb=False)", "to_rgb=False"),
        ("dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)", r"dilations=\(1, 1, 2, 4\)"),
    ],
)
@pytest.mark.parametrize("key", ["cfg", "config"])
def test_what_openmmlabs_config_says_of_another_network(tmp_path, key, text, said):
    weights = {f"backbone.{name}": value for name, value in random_weights("resnet18").items()}
    plain = {"meta": {key: "style='pytorch', dilations=(1, 1, 1, 1), to_rgb=True"}, "state_dict": weights}
    assert convert(put(tmp_path, plain), tmp_path / "plain.pkl").source.layout == "openmmlab"
    (tmp_path / "other").mkdir()
    refused(put(tmp_path / "other", {**plain, "meta": {key: text}}), f"its config has {said}")


@pytest.mark.parametrize("key", ["RES4_DILATION", "RES5_DILATION"])
def test_dilation_in_detectron2s_config(tmp_path, key):
    config = {"MODEL": {"RESNETS": {"STRIDE_IN_1X1": False, key: 2}}}
    refused(put(tmp_path, detector(), config), f"{key} 2: dilated")
    with pytest.raises(ValueError, match=f"{key} 2: dilated"):
        convert_back(tmp_path / "in.pth", tmp_path / "out.pth")


def test_the_config_that_is_written_undoes_dilation(tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL: {RESNETS: {RES5_DILATION: 2}}")
    path = put(tmp_path, random_weights(BOTTLENECKS))
    assert convert(path, tmp_path / "out.pkl").config["MODEL"]["RESNETS"]["RES5_DILATION"] == 1


def test_a_named_prefix_takes_detectron2s_conventions_from_the_config(tmp_path):
    prefix = "modelStudent.backbone.bottom_up."
    content = detector(prefix=prefix)
    config = {"MODEL": {"RESNETS": {"STRIDE_IN_1X1": True}}, "INPUT": {"FORMAT": "BGR"}}
    refused(put(tmp_path, content), "name the config of its run", prefix=prefix)
    (tmp_path / "run").mkdir()
    path = put(tmp_path / "run", content, config)
    conventions = convert(path, tmp_path / "out.pkl", prefix=prefix).source.conventions
    assert (conventions.format, conventions.stride_in_1x1) == ("BGR", True)


def test_segmentation_networks_are_not_solo_learns(tmp_path):
    weights = {f"backbone.{name}": value for name, value in random_weights("resnet18").items()}
    head = {"classifier.0.convs.0.0.weight": torch.zeros(2, 2, 1, 1)}  # as torchvision's deeplabv3
    refused(put(tmp_path, {"state_dict": {**weights, **head}}), "which no known project's layout fits")
    content = {"pytorch-lightning_version": "2.0", "state_dict": {**weights, "decoder.weight": torch.zeros(1)}}
    refused(put(tmp_path, content), "which no known project's layout fits")


def test_the_way_back_says_what_the_images_were(tmp_path):
    config = {"MODEL": {"RESNETS": {"STRIDE_IN_1X1": False}, "PIXEL_STD": [1, 1, 1]}, "INPUT": {"FORMAT": "BGR"}}
    result = convert_back(put(tmp_path, detector(), config), tmp_path / "out.pth")
    assert any("BGR images" in note and "(1.0, 1.0, 1.0)" in note for note in result.source.notes)


def test_the_way_back_of_a_plain_resnet_built_as_an_encoder(tmp_path):
    weights = random_weights("resnet18")
    content = {"model": {f"backbone.bottom_up.encoder.{name}": value for name, value in weights.items()}}
    config = {"MODEL": {"ENCODER": "resnet18", "RESNETS": {"STRIDE_IN_1X1": False}}}
    convert_back(put(tmp_path, content, config), tmp_path / "out.pth")
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert all(torch.equal(back[name], value) for name, value in weights.items())


def test_a_detector_on_somebodys_own_encoder(tmp_path):
    weights = {f"backbone.bottom_up.encoder.{name}": value for name, value in random_weights("resnet18").items()}
    config = {"MODEL": {"ENCODER": "my.package.blurred_resnet18", "RESNETS": {}}}
    refused(put(tmp_path, {"model": weights}, config), "code of your own")


@pytest.mark.parametrize("values", [3, None, [1.0], ["a", "b", "c"], [0, 0, 0]])
def test_pixels_that_are_no_three_numbers(tmp_path, values):
    config = {"MODEL": {"RESNETS": {"STRIDE_IN_1X1": False}, "PIXEL_STD": values}}
    refused(put(tmp_path, detector(), config), "not three numbers")


@pytest.mark.parametrize("kind", ["U5", "g", "V2", "c8"])
def test_arrays_of_other_kinds(tmp_path, kind):
    arrays = {name: value.numpy() for name, value in random_weights("resnet18").items()}
    arrays["conv1.weight"] = np.zeros((64, 3, 7, 7), kind)
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape("conv1.weight holds")):
        convert(tmp_path / "in.npz", tmp_path / "out.pkl")


PIXELS = {"mean": [0.5, 0.25, 0.5], "std": (0.5, 0.5, 0.25)}


@pytest.mark.parametrize(
    ("prefix", "content"),
    [
        ("", {"arch": "resnet18", "args": argparse.Namespace(**PIXELS)}),  # --mean and --std of timm's train.py
        ("embedding_model.wrapped_model._features.", {"lightly_train": {"normalize_args": PIXELS}}),
    ],
)
def test_pixels_that_the_script_was_given(tmp_path, prefix, content):
    weights = {prefix + name: value for name, value in random_weights("resnet18").items()}
    source = convert(put(tmp_path, {"state_dict": weights, **content}), tmp_path / "out.pkl").source
    assert source.conventions[1:3] == ((127.5, 63.75, 127.5), (127.5, 127.5, 63.75))


@pytest.mark.parametrize("args", [{"mean": None, "std": None}, {}, {"mean": 3, "std": "x"}, {"mean": ["a"] * 3}])
def test_a_script_that_was_given_none(tmp_path, args):
    content = {"arch": "resnet18", "args": argparse.Namespace(**args), "state_dict": random_weights("resnet18")}
    assert convert(put(tmp_path, content), tmp_path / "out.pkl").source.conventions[2] == (58.395, 57.12, 57.375)


def test_another_models_card_beside_the_file(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet50", "pretrained_cfg": {"mean": ["x"], "std": 3}}')
    weights = {f"module.encoder_q.{name}": value for name, value in random_weights("resnet18").items()}
    assert convert(put(tmp_path, {"state_dict": weights}), tmp_path / "out.pkl").source.arch == "resnet18"


def test_the_way_back_is_no_pkl(tmp_path):
    with pytest.raises(ValueError, match="use .pth"):
        convert_back(put(tmp_path, detector()), tmp_path / "out.pkl")

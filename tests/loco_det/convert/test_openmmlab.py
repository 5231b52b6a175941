"""Mean and std by the config in an OpenMMLab checkpoint: used as it is written, or the file is refused."""

import json
import time

import pytest
import torch
import yaml
from weights import SMALL, random_weights

from loco_det.convert import convert, load_encoder, load_source
from loco_det.convert.sources.python_config import LONGEST

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
OTHER = ((127.5, 120, 110.25), (60, 61, 62))
VALUES = "mean=[127.5, 120, 110.25], std=[60, 61, 62]"


@pytest.fixture
def checkpoint(tmp_path):
    """``checkpoint(config, key)``: a file of MMPretrain with that config in its meta."""

    def save(text, key="cfg", **more):
        weights = {f"backbone.{name}": value for name, value in random_weights(SMALL).items()}
        torch.save({"meta": {"epoch": 3, key: text, **more}, "state_dict": weights}, tmp_path / "epoch_3.pth")
        return tmp_path / "epoch_3.pth"

    return save


def pixels(path):
    return load_source(path)[0].conventions[1:3]


# --- mmengine's ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["cfg", "config"])
def test_data_preprocessor(checkpoint, tmp_path, key):
    path = checkpoint(f"data_preprocessor = dict(num_classes=9, {VALUES}, to_rgb=True)\nmodel = dict()", key)
    convert(path, tmp_path / "out.pkl")
    model = yaml.safe_load((tmp_path / "out.yaml").read_text())["MODEL"]
    assert (tuple(model["PIXEL_MEAN"]), tuple(model["PIXEL_STD"])) == OTHER
    assert load_encoder(path).conventions[1:3] == OTHER


@pytest.mark.parametrize(
    "config",
    [
        f"data_preprocessor = dict({VALUES}, bgr_to_rgb=True)",  # MMSelfSup's, MMDetection's
        f"model = dict(data_preprocessor=dict(type='mmselfsup.SelfSupDataPreprocessor', {VALUES}, bgr_to_rgb=True))",
        "data_preprocessor = {'mean': [127.5, 120, 110.25], 'std': (60, 61, 62), 'to_rgb': True}",
        "data_preprocessor = dict(\n    mean=[\n        127.5,\n        120,\n        110.25,\n    ],\n"
        "    std=[\n        60,\n        61,\n        62,\n    ],\n    to_rgb=True)",  # as yapf breaks lines
        "data_preprocessor = dict(mean=[0.5 * 255, 240 / 2, 110 + 0.25], std=[60., +61, --62], to_rgb=True)",
        f"norm = dict({VALUES})\ndata_preprocessor = dict(to_rgb=True, **norm)",
        f"norm = dict({VALUES})\ndata_preprocessor = dict(mean=norm['mean'], std=tuple(norm['std']), to_rgb=True)",
        f"# mean=[0, 0, 0]\n'''std=[1, 1, 1]'''\npreprocess_cfg = dict({VALUES}, to_rgb=True)",
        # mmengine's Runner gives the model that of the config only if it has none
        f"data_preprocessor = dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True)\n"
        f"model = dict(data_preprocessor=dict({VALUES}, to_rgb=True))",
        f"model = dict(data_preprocessor=dict(type='MultiBranchDataPreprocessor', "
        f"data_preprocessor=dict({VALUES}, bgr_to_rgb=True)))",
        f"data_preprocessor = dict({VALUES}, second_mean=[0, 0, 0], second_std=[1, 1, 1], to_rgb=True)",
        "data_preprocessor = None\n"
        f"train_pipeline = [dict(type='Normalize', {VALUES}, to_rgb=True)]",
        f"configs/a-b/c d.py\nimport os.path\nfrom x import y\ndata_preprocessor = dict({VALUES}, to_rgb=True)\n",
        json.dumps({"data_preprocessor": {"mean": OTHER[0], "std": OTHER[1], "to_rgb": True}, "load_from": None}),
        {"data_preprocessor": {"mean": [127.5, 120, 110.25], "std": [60, 61, 62], "to_rgb": True}},
    ],
)  # fmt: skip
def test_ways_to_write_it(config, checkpoint):
    assert pixels(checkpoint(config)) == OTHER


def test_one_number_for_all_channels(checkpoint):
    config = "data_preprocessor = dict(mean=[127.5], std=[64], to_rgb=True)"
    assert pixels(checkpoint(config)) == ((127.5,) * 3, (64,) * 3)


# --- older ones' ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        f"img_norm_cfg = dict({VALUES}, to_rgb=True)",
        f"img_norm_cfg = dict({VALUES}, to_rgb=True)\ntrain = [dict(type='Normalize', **img_norm_cfg)]",
        f"data = dict(train=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='Normalize', {VALUES})]))",
        f"train = [dict(type='Normalize', {VALUES}), dict(type='ToTensor', keys=['gt_label'])]",  # OpenMMLab's ToTensor
        # torchvision's ToTensor and Normalize, of pixels from 0 to 1
        "img_norm_cfg = dict(mean=[0.5, 120 / 255, 110.25 / 255], std=[60 / 255, 61 / 255, 62 / 255])\n"
        "prefetch = False\ntrain_pipeline = [dict(type='RandomResizedCrop', size=224)]\n"
        "if not prefetch:\n    train_pipeline.extend([dict(type='ToTensor'), dict(type='Normalize', **img_norm_cfg)])",
    ],
)
def test_img_norm_cfg_and_normalize(config, checkpoint):
    assert pixels(checkpoint(config)) == OTHER


def test_pixels_from_0_to_1(checkpoint):
    config = "img_norm_cfg = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])"
    assert pixels(checkpoint(config)) == IMAGENET
    ones = "dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1])"
    assert pixels(checkpoint(f"train = [dict(type='ToTensor'), {ones}]")) == ((0,) * 3, (255,) * 3)
    assert pixels(checkpoint(f"train = [dict(type='LoadImageFromFile'), {ones}]")) == ((0,) * 3, (1,) * 3)


@pytest.mark.parametrize("config", ["", "model = dict(type='MoCo')", None, 3, "not Python at all", "/a-b/c.py\n"])
def test_a_config_that_does_not_say_leaves_imagenets(config, checkpoint):
    assert pixels(checkpoint(config)) == IMAGENET


# --- what is not certain ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (f"data_preprocessor = dict({VALUES}, to_rgb=True", "cannot be read as Python .line 1"),
        ("data_preprocessor = dict(mean=[1, 2], std=[1, 2], to_rgb=True)", r"mean \[1, 2\] and std"),
        ("data_preprocessor = dict(mean=[1, 2, 3], to_rgb=True)", r"mean \[1, 2, 3\] and std None"),
        ("data_preprocessor = dict(mean=load(), std=[1, 1, 1], to_rgb=True)", "mean a value that is computed"),
        ("data_preprocessor = dict(mean=[x, 1, 2], std=[1, 1, 1], to_rgb=True)", "a value that is computed, 1, 2"),
        ("data_preprocessor = dict(mean={{_base_.mean}}, std=[1, 1, 1], to_rgb=True)", "mean a value"),
        ("data_preprocessor = dict(mean=[0, 0, 0], std=[255, 0, 255], to_rgb=True)", r"std \[255, 0, 255\]"),
        ("data_preprocessor = dict(mean=[0, 0, 0], std=[1, 1e999, 1], to_rgb=True)", "inf"),
        (f"data_preprocessor = dict(mean=[0, 0, {'9' * 400}], std=[1, 1, 1], to_rgb=True)", "mean .0, 0, 999"),
        ("data_preprocessor = dict(mean=['a', 'b', 'c'], std=[1, 1, 1], to_rgb=True)", "mean .'a'"),
        ("data_preprocessor = dict(mean=[1/0, 0, 0], std=[1, 1, 1], to_rgb=True)", "mean .a value"),
        ("data_preprocessor = dict(mean=[.485, .456, .406], std=[.229, .224, .225], to_rgb=True)", "from 0 to 255"),
        ("data_preprocessor = make()", "data_preprocessor that is a value that is computed"),
        ("data_preprocessor = dict(type='ClsDataPreprocessor', num_classes=3)", "without mean and std"),
        (f"data_preprocessor = dict({VALUES})", "without to_rgb or bgr_to_rgb"),
        (f"data_preprocessor = dict({VALUES}, to_rgb=True)\ndata_preprocessor['mean'] = [0, 0, 0]", "is computed"),
        (f"data_preprocessor = dict({VALUES}, to_rgb=True)\ndata_preprocessor.update(mean=[0])", "is computed"),
        (f"if debug:\n    data_preprocessor = dict({VALUES})", "is computed"),
        (f"img_norm_cfg = dict({VALUES})\nimg_norm_cfg.update(x)", "Normalize with mean None"),
        (f"a = [dict(type='Normalize', {VALUES}), dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1])]", "several"),
        (f"a = [dict(type='ToTensor'), dict(type='Normalize', {VALUES})]", "that ToTensor has divided by 255"),
        (f"model = dict(a=dict(data_preprocessor=dict({VALUES}, to_rgb=True)), "
         "b=dict(data_preprocessor=dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True)))", "several of them"),
    ],
)  # fmt: skip
def test_refused_with_what_to_do(config, message, checkpoint, tmp_path):
    path = checkpoint(config)
    with pytest.raises(ValueError, match=message) as caught:
        convert(path, tmp_path / "out.pkl")
    line = str(caught.value)
    assert line.isprintable() and len(line) < 700 and "--prefix backbone. takes it" in line
    assert not (tmp_path / "out.pkl").exists()
    assert load_source(path, prefix="backbone.")[0].conventions[1:3] == IMAGENET


def test_two_configs_that_contradict_each_other(checkpoint):
    both = {"config": "data_preprocessor = dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True)"}
    with pytest.raises(ValueError, match="has two of them"):
        load_source(checkpoint(f"data_preprocessor = dict({VALUES}, to_rgb=True)", "cfg", **both))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("model = dict(backbone=dict(type='ResNet', style = 'caffe'))", "style='caffe'"),
        ("model = {'backbone': {'style': 'caffe'}}", "style='caffe'"),
        ("model = dict(backbone=dict(dilations=[1, 1, 1, 2]))", r"dilations=\(1, 1, 1, 2\)"),
        ("model = dict(backbone=dict(strides=(1, 2, 2, 1)))", r"strides=\(1, 2, 2, 1\)"),
        ("norm_cfg = dict(type='BN', eps=1e-3)\nmodel = dict(backbone=dict(norm_cfg=norm_cfg))", "norm_cfg eps=0.001"),
        (f"data_preprocessor = dict({VALUES}, bgr_to_rgb=False)", "bgr_to_rgb=False"),
        (f"data_preprocessor = dict({VALUES}, rgb_to_bgr=True)", "rgb_to_bgr=True"),
        (f"img_norm_cfg = dict({VALUES}, to_rgb = False)", "to_rgb=False"),
        ("half of it, style = 'caffe' (", "style = 'caffe"),
    ],
)
def test_what_shapes_do_not_tell(config, said, checkpoint):
    with pytest.raises(ValueError, match=f"its config has {said}: no plain RGB ResNet"):
        load_source(checkpoint(config))


def test_what_belongs_to_other_parts_of_a_detector(checkpoint):
    config = (
        f"data_preprocessor = dict({VALUES}, bgr_to_rgb=True)\n"
        "model = dict(backbone=dict(style='pytorch', strides=(1, 2, 2, 2), norm_cfg=dict(type='BN', eps=1e-5)),\n"
        "    rpn_head=dict(anchor_generator=dict(strides=[4, 8, 16, 32, 64])))"
    )
    assert pixels(checkpoint(config)) == OTHER


# --- hostile ---------------------------------------------------------------------------------------------------------

LAUGHS = "a0 = [1]\n" + "".join(f"a{i} = [a{i - 1}, a{i - 1}, a{i - 1}]\n" for i in range(1, 200))
HOSTILE = {
    "code": "__import__('os').mkdir('TRAP')\ndata_preprocessor = dict(mean=__import__('os').mkdir('TRAP'))",
    "laughs": f"{LAUGHS}data_preprocessor = dict(mean=a199, std=a199, to_rgb=True)",
    "doubled": "".join(["mean = [1]\n", *["mean = mean + mean\n"] * 60, "img_norm_cfg = dict(mean=mean, std=mean)"]),
    "power": "img_norm_cfg = dict(mean=[9 ** 9 ** 9, 1, 1], std=[1, 1, 1])",
    "repeated": "img_norm_cfg = dict(mean=[0] * 10 ** 12, std=[1, 1, 1])",
    "deep": f"img_norm_cfg = dict(mean={'-' * 100_000}1)",
    "nested": f"img_norm_cfg = dict(mean={'[' * 5_000}{']' * 5_000})",
    "dots": f"img_norm_cfg = dict(mean=a{'.b' * 100_000})",
    "long": "img_norm_cfg = 1" + " " * LONGEST,
    "null": "img_norm_cfg = '\0'",
    "digits": f"img_norm_cfg = dict(mean=[{'9' * 5_000}, 1, 1], std=[1, 1, 1])",
    "names": "img_norm_cfg = dict(mean=['\\x1b[31m\\n\\u202e'], std='\\n')",
    "self": "mean = [mean]\nimg_norm_cfg = dict(mean=mean, std=mean)",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_config_is_data(kind, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, start = checkpoint(HOSTILE[kind]), time.perf_counter()
    with pytest.raises(ValueError, match="are not certain") as caught:
        load_source(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    assert time.perf_counter() - start < 10 and not (tmp_path / "TRAP").exists()

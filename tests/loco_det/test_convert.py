"""Conversion to Detectron2: exact against torchvision, loadable by a detector, and refusing everything else."""

import errno
import hashlib
import os
import pickle
import random

import numpy as np
import pytest
import torch
import torchvision
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from hypothesis import given, settings
from hypothesis import strategies as st

import loco_det.convert as loco_convert
import loco_det.convert.verify as verification
from loco_det.convert import VerificationError, architecture, conversion, convert, infer_arch, to_detectron2
from pretrain.encoders import ENCODERS, RESNETS, STAGE_NAMES, build_encoder


def randomised(name, seed=0, **kwargs):
    """A torchvision network whose norms are far from the identity, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)
    net = getattr(torchvision.models, name)(weights=None, **kwargs)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                shape = module.weight.shape
                module.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                module.bias.copy_(0.2 * torch.randn(shape, generator=generator))
                module.running_mean.copy_(0.2 * torch.randn(shape, generator=generator))
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
                module.num_batches_tracked.fill_(7)
    return net.eval()


def encoder_weights(net):
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}


@pytest.fixture(scope="module")
def r18():
    return randomised("resnet18")


@pytest.fixture(scope="module")
def r18_file(r18, tmp_path_factory):
    path = tmp_path_factory.mktemp("r18") / "resnet18.pth"
    torch.save(r18.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def converted(r18_file):
    return convert(r18_file, r18_file.with_suffix(".pkl"))


def save(content, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return path


def torchvision_features(net, images):
    """res2..res5 by torchvision's own modules, in order."""
    features, x = [], net.maxpool(net.relu(net.bn1(net.conv1(images))))
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        features.append(x := layer(x))
    return features


def detector_config(depth, freeze_at, norm="SyncBN"):
    """Mask R-CNN with FPN as the recipes have it, on the CPU."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = list(STAGE_NAMES)
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 4, 1
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return cfg


class ListeningCheckpointer(DetectionCheckpointer):
    def _load_model(self, checkpoint):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


# --- the right thing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze_at", [0, 5])
def test_a_whole_detector_is_filled_and_computes_torchvisions_features(r18, converted, freeze_at):
    model = build_model(detector_config(18, freeze_at))
    checkpointer = ListeningCheckpointer(model)
    rest = checkpointer.load(converted.output)
    missing, unexpected, shapes = checkpointer.incompatible
    assert not [name for name in missing if "bottom_up" in name]
    assert not unexpected and not shapes
    assert set(rest) >= {"source", "arch", "sha256"}  # handed back, not loaded into anything
    images = torch.randn(2, 3, 75, 110, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        got = model.backbone.bottom_up.eval()(images)
        wanted = torchvision_features(r18, images)
    for name, features in zip(STAGE_NAMES, wanted, strict=True):
        assert torch.equal(got[name], features), name


def test_resnet50_is_exact_and_quiet(tmp_path, caplog):
    net = randomised("resnet50", seed=1)
    path = save({"state_dict": {f"module.{name}": tensor for name, tensor in net.state_dict().items()}}, tmp_path)
    caplog.set_level("INFO")
    before = torch.random.get_rng_state()
    result = convert(path, tmp_path / "out.pkl", arch="resnet50")
    assert torch.equal(before, torch.random.get_rng_state())
    assert not caplog.records
    assert (result.arch, result.entries, result.dropped) == ("resnet50", 318, {"fc": 2})
    assert "module." in result.layout and "state_dict" in result.layout
    for mode in ("eval", "train"):
        assert list(result.differences[mode]) == list(STAGE_NAMES)
        assert all(d.relative <= 1e-5 for d in result.differences[mode].values())
    with open(tmp_path / "out.pkl", "rb") as file:
        content = pickle.load(file)
    assert (content["__author__"], content["matching_heuristics"]) == ("loco-det", True)
    assert all(isinstance(value, np.ndarray) for value in content["model"].values())
    assert content["sha256"] == result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert content["source"] == "checkpoint.pth"
    cfg = detector_config(50, 5)
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    images = torch.randn(1, 3, 67, 90, generator=torch.Generator().manual_seed(3))
    DetectionCheckpointer(torch.nn.ModuleDict({"backbone": backbone})).load(result.output)
    with torch.no_grad():
        got = backbone.bottom_up(images)
        for name, features in zip(STAGE_NAMES, torchvision_features(net, images), strict=True):
            assert torch.equal(got[name], features), name


def test_our_checkpoint_loses_its_decoders_only(r18, tmp_path):
    weights = {f"encoder.{name}": tensor for name, tensor in encoder_weights(r18).items()}
    weights |= {f"decoders.res{i}.0.weight": torch.zeros(2) for i in (3, 4, 5)}
    content = {"format": "loco-det pretraining", "encoder": "resnet18", "iteration": 9, "model": weights}
    result = convert(save(content, tmp_path), tmp_path / "out.pkl")
    assert (result.arch, result.dropped, result.layout) == ("resnet18", {"decoders": 3}, "loco-det pretraining")
    with open(result.output, "rb") as file:
        written = pickle.load(file)["model"]
    assert np.array_equal(
        written["res3.0.shortcut.norm.running_var"], weights["encoder.layer2.0.downsample.1.running_var"]
    )


def test_same_input_same_bytes(r18_file, converted, tmp_path):
    again = convert(str(r18_file), str(tmp_path / "again.pkl"))
    assert (tmp_path / "again.pkl").read_bytes() == r18_file.with_suffix(".pkl").read_bytes()
    assert again.size == os.path.getsize(again.output) and again.differences == converted.differences


@pytest.mark.parametrize("change", ["no counters", "half", "double", "float counters", "channels last"])
def test_harmless_variants_of_the_weights_are_accepted(r18, tmp_path, change):
    weights = encoder_weights(r18)
    if change == "no counters":
        weights = {name: tensor for name, tensor in weights.items() if "num_batches" not in name}
    elif change == "float counters":
        weights = {name: tensor.float() if "num_batches" in name else tensor for name, tensor in weights.items()}
    elif change == "channels last":
        weights = {
            n: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in weights.items()
        }
    else:
        dtype = {"half": torch.float16, "double": torch.float64}[change]
        weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    result = convert(save({"model": weights}, tmp_path), tmp_path / "out.pkl")
    with open(result.output, "rb") as file:
        written = pickle.load(file)["model"]
    assert len(written) == 120
    assert written["stem.conv1.norm.num_batches_tracked"].dtype == np.int64
    assert written["stem.conv1.norm.num_batches_tracked"] == (0 if change == "no counters" else 7)
    assert written["res5.1.conv2.weight"].dtype == np.float32
    assert np.array_equal(written["res5.1.conv2.weight"], weights["layer4.1.conv2.weight"].float().numpy())


@pytest.mark.parametrize("depth", [18, 101])
def test_config_lines_are_valid_for_detectron2(depth, tmp_path):
    result = conversion.Conversion('a "b".pkl', f"resnet{depth}", "", {}, 0, 0, "", {})
    (tmp_path / "c.yaml").write_text("\n".join(result.config))
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "c.yaml"))
    assert cfg.MODEL.WEIGHTS == 'a "b".pkl' and cfg.INPUT.FORMAT == "RGB"
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == (depth, False)
    assert cfg.MODEL.RESNETS.RES2_OUT_CHANNELS == (64 if depth == 18 else 256)
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53] and cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert ("RES2_OUT_CHANNELS" in yaml.safe_load("\n".join(result.config))["MODEL"]["RESNETS"]) == (depth == 18)


# --- names -----------------------------------------------------------------------------------------------------------


def to_torchvision(name):
    """The way back, by the rules of conventions read from right to left."""
    name = name.removeprefix("stem.").replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
    for i in (1, 2, 3):
        name = name.replace(f"conv{i}.norm.", f"bn{i}.")
    for i in (2, 3, 4, 5):
        name = name.replace(f"res{i}.", f"layer{i - 1}.")
    return name


@pytest.mark.parametrize("arch", RESNETS)
def test_names_are_exactly_detectron2s(arch):
    with torch.device("meta"):
        backbone = build_backbone(verification._detectron2_config(arch), ShapeSpec(channels=3))
    wanted = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    assert {name: tensor.shape for name, tensor in to_detectron2(architecture.reference(arch)).items()} == wanted


NAMES = {arch: list(architecture.reference(arch)) for arch in RESNETS}


@settings(deadline=None)
@given(st.sampled_from(RESNETS), st.integers(0, 2**32), st.integers(0, 600))
def test_the_name_map_is_bijective_on_any_part_of_an_encoder(arch, seed, count):
    names = list(NAMES[arch])
    random.Random(seed).shuffle(names)
    values = {name: object() for name in names[:count]}
    renamed = to_detectron2(values)
    assert len(renamed) == len(values)
    assert {to_torchvision(name): value for name, value in renamed.items()} == values


@given(st.one_of(st.text(max_size=30), st.from_regex(r"(layer[0-9]\.)?[0-9]?\.?(conv|bn|fc|head)[0-9]\.[a-z]+")))
def test_other_names_are_refused_or_come_back(name):
    try:
        (renamed,) = to_detectron2({name: None})
    except ValueError as error:
        assert repr(name) in str(error)
    else:
        assert to_torchvision(renamed) == name


@pytest.mark.parametrize(
    "name",
    [
        "fc.weight",
        "conv2.weight",
        "downsample.0.weight",
        "layer5.0.conv1.weight",
        "layer1.0.se.weight",
        "conv1.weight\n",
    ],
)
def test_names_of_other_networks_are_refused(name):
    with pytest.raises(ValueError, match="not the name"):
        to_detectron2({name: None})


@pytest.mark.parametrize("arch", RESNETS)
def test_every_encoder_is_recognised(arch):
    with torch.device("meta"):
        assert infer_arch(build_encoder(arch).state_dict()) == arch


@pytest.mark.parametrize("name", sorted({*ENCODERS, "my.own.encoder"} - {*RESNETS}))
def test_other_encoders_of_ours_are_refused_by_name(tmp_path, name):
    encoder = build_encoder(name if name in ENCODERS else "resnet18")
    weights = {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}
    path = save({"format": "loco-det pretraining", "encoder": name, "model": weights}, tmp_path)
    with pytest.raises(ValueError, match=f"checkpoint.pth: its encoder is '{name}', .* resnet101$") as caught:
        convert(path, tmp_path / "out.pkl")
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == ["checkpoint.pth"]


# --- verification refuses what loads silently ------------------------------------------------------------------------


def flip_channels(model):
    model["stem.conv1.weight"] = model["stem.conv1.weight"].flip(1)


def exchange_norms(model):
    for parameter in ("weight", "bias", "running_mean", "running_var"):
        a, b = (f"res4.1.conv{i}.norm.{parameter}" for i in (1, 2))
        model[a], model[b] = model[b], model[a]


def forget_statistics(model):
    model["res2.0.conv1.norm.running_mean"] = torch.zeros(64)


def forget_affine(model):
    model["res5.1.conv2.norm.weight"] = torch.ones(512)


def lose_a_norm(model):
    for name in [name for name in model if name.startswith("res3.0.shortcut.norm.")]:
        del model[name]


def round_to_half(model):
    model["res2.0.conv1.weight"] = model["res2.0.conv1.weight"].half().float()


def add_one(model):
    model["res2.7.conv1.weight"] = torch.zeros(1)


def other_shape(model):
    model["res2.0.conv1.weight"] = torch.zeros(32, 64, 3, 3)


@pytest.mark.parametrize(
    "corrupt, message",
    [
        (flip_channels, "res2 differs"),
        (exchange_norms, "res4 differs"),
        (forget_statistics, "res2 differs"),
        (forget_affine, "res5 differs"),
        (round_to_half, "res2 differs"),
        (lose_a_norm, "missing .*res3.0.shortcut.norm"),
        (add_one, "1 entries left over .*res2.7.conv1.weight"),
        (other_shape, "1 entries of another shape .*res2.0.conv1.weight"),
    ],
)
def test_a_wrong_conversion_is_refused_and_leaves_nothing(r18_file, tmp_path, monkeypatch, corrupt, message):
    def wrong(state_dict):
        model = to_detectron2(state_dict)
        corrupt(model)
        return model

    monkeypatch.setattr(conversion, "to_detectron2", wrong)
    out = tmp_path / "out.pkl"
    out.write_text("older")
    with pytest.raises(VerificationError, match=message) as caught:
        convert(r18_file, out)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["out.pkl"] and out.read_text() == "older"


def test_the_stride_in_the_wrong_convolution_is_refused(tmp_path, monkeypatch):
    right = verification._detectron2_config

    def wrong(arch):
        cfg = right(arch)
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
        return cfg

    monkeypatch.setattr(verification, "_detectron2_config", wrong)
    path = save(randomised("resnet50").state_dict(), tmp_path)
    with pytest.raises(VerificationError, match="res3 differs"):  # res2 has no stride
        convert(path, tmp_path / "out.pkl")
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


def test_training_mode_is_compared_too(r18, converted, monkeypatch):
    right = verification.build_backbone

    def frozen(cfg, shape):
        cfg.MODEL.RESNETS.NORM = "FrozenBN"  # the same in eval mode
        backbone = right(cfg, shape)
        for module in backbone.modules():
            if "num_batches_tracked" in module._buffers:
                module.num_batches_tracked = torch.tensor(0)
        return backbone

    monkeypatch.setattr(verification, "build_backbone", frozen)
    with pytest.raises(VerificationError, match="train mode"):
        verification.verify(converted.output, "resnet18", encoder_weights(r18))


@pytest.mark.parametrize("value, message", [(0.0, "all zero"), (-1.0, "not finite")])
def test_features_that_prove_nothing_are_refused(r18, tmp_path, value, message):
    weights = {name: tensor.clone() for name, tensor in encoder_weights(r18).items()}
    if value == 0:
        for name in weights:
            if (
                name.startswith("layer4.1.")
                or name.startswith("layer4.0.downsample.1")
                or name.startswith("layer4.0.bn2")
            ):
                weights[name] *= 0
    else:
        weights["layer3.0.bn1.running_var"].fill_(value)
    with pytest.raises(VerificationError, match=message):
        convert(save(weights, tmp_path), tmp_path / "out.pkl")
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


def test_the_comparison_itself():
    same = torch.rand(2, 3, 4, 5) + 1
    assert verification._compare("res2", "eval", same, same) == (0, 0)
    assert verification._compare("res2", "eval", 8 * same, 8 * same + 1e-5).relative < 1e-5
    for other in (same + 1e-3, same * float("nan"), same[:, :2], same[..., :4]):
        with pytest.raises(VerificationError):
            verification._compare("res2", "eval", same, other)


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["dump", "fsync"])
def test_a_full_disk_leaves_nothing(r18_file, tmp_path, monkeypatch, step):
    def full(*args):
        if step == "dump":
            args[1].write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conversion.pickle if step == "dump" else conversion.os, step, full)
    out = tmp_path / "out.pkl"
    out.write_text("older")
    with pytest.raises(OSError, match=r"out\.pkl: cannot be written \(No space left on device\)"):
        convert(r18_file, out)
    assert os.listdir(tmp_path) == ["out.pkl"] and out.read_text() == "older"


def test_an_interruption_leaves_nothing(r18_file, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(r18_file, tmp_path / "out.pkl")
    assert os.listdir(tmp_path) == []


def test_the_package_exports_what_it_says():
    assert all(hasattr(loco_convert, name) for name in loco_convert.__all__)

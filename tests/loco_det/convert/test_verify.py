"""The proof: whatever would load silently and compute something else is caught, and what is right is not."""

import logging
import pickle

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from weights import random_weights

import loco_det.convert.verify as verification
from loco_det.convert import Conventions, VerificationError, to_detectron2
from loco_det.convert.networks import detectron2_config, detectron2_network, source_network
from loco_det.convert.verify import compare, source_features, test_images, verify
from pretrain.encoders import STAGE_NAMES, parse_encoder

ARCH = "resnet50x0.25"  # bottlenecks, in Detectron2's own ResNet
ENCODER = parse_encoder(ARCH)
USUAL = Conventions()
CAFFE = Conventions("BGR", (102.98, 115.95, 122.77), (1.0, 1.0, 1.0), stride_in_1x1=True)


@pytest.fixture(scope="module")
def weights():
    return random_weights(ARCH)


@pytest.fixture
def saved(tmp_path):
    """``saved(state dict of Detectron2's names)``: the path of a file that Detectron2 loads."""

    def save(model):
        model = {name: tensor.numpy() for name, tensor in model.items()}
        path = tmp_path / "weights.pkl"
        path.write_bytes(pickle.dumps({"model": model, "__author__": "tests", "matching_heuristics": True}))
        return path

    return save


def config(**resnets):
    config = detectron2_config(ENCODER, USUAL, "")
    config["MODEL"]["RESNETS"] |= resnets
    return config


def prove(path, weights, conventions=USUAL, config=None):
    config = config or detectron2_config(ENCODER, conventions, "")
    return verify(path, config, conventions, source_features(ENCODER, weights, conventions))


# --- the right thing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conventions", [USUAL, CAFFE])
def test_a_right_conversion_is_exact(weights, saved, conventions):
    differences = prove(saved(to_detectron2(weights)), weights, conventions)
    assert list(differences) == ["eval", "train"]
    for stages in differences.values():
        assert list(stages) == list(STAGE_NAMES)
        assert all(d.absolute <= d.relative <= 1e-6 or d == (0, 0) for d in stages.values())


def test_the_callers_tensors_random_numbers_and_loggers_stay_as_they_were(weights, saved, caplog):
    silent = weights | {name: torch.zeros_like(t) for name, t in weights.items() if name.endswith("bn3.weight")}
    torch.manual_seed(5)
    before, state = {name: tensor.clone() for name, tensor in silent.items()}, torch.random.get_rng_state()
    logger = logging.getLogger("fvcore.common.checkpoint")
    caplog.set_level("INFO")
    caplog.set_level("INFO", logger.name)
    prove(saved(to_detectron2(silent)), silent)
    assert all(torch.equal(silent[name], before[name]) for name in before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not caplog.records and logger.level == logging.INFO


def test_the_images_are_normalised_as_the_network_expects():
    usual, raw = test_images(USUAL), test_images(Conventions(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    assert torch.equal(usual, test_images(USUAL)) and usual.shape == (2, 3, 97, 130)
    assert raw.min() >= 0 and 200 < raw.max() <= 255
    assert torch.allclose(usual[:, 2], (raw[:, 2] - 103.53) / 57.375)
    assert raw.std((2, 3)).min() > 20 and not torch.equal(raw[:, 0], raw[:, 2])  # so that flipped channels show


# --- what loads silently ----------------------------------------------------------------------------------------------


def flip_channels(model):
    model["stem.conv1.weight"] = model["stem.conv1.weight"].flip(1)


def exchange_norms(model):
    for parameter in ("weight", "bias", "running_mean", "running_var"):
        a, b = (f"res4.1.conv{i}.norm.{parameter}" for i in (1, 2))
        model[a], model[b] = model[b], model[a]


def forget_a_mean(model):
    model["res2.0.conv1.norm.running_mean"] = torch.zeros(16)


def forget_a_variance(model):
    model["res3.0.shortcut.norm.running_var"] = torch.ones(128)


def forget_affine(model):
    model["res5.1.conv2.norm.weight"] = torch.ones(128)


def round_to_half(model):
    model["res2.0.conv1.weight"] = model["res2.0.conv1.weight"].half().float()


def transpose(model):
    model["res3.1.conv2.weight"] = model["res3.1.conv2.weight"].mT.contiguous()


def lose_a_norm(model):
    for name in [name for name in model if name.startswith("res3.0.shortcut.norm.")]:
        del model[name]


def add_one(model):
    model["res2.7.conv1.weight"] = torch.zeros(1)


def other_shape(model):
    model["res2.0.conv2.weight"] = torch.zeros(32, 64, 3, 3)


@pytest.mark.parametrize(
    "corrupt, message",
    [
        (flip_channels, "^res2 differs .* relative .eval mode., more than rounding"),
        (exchange_norms, "^res4 differs"),
        (forget_a_mean, "^res2 differs"),
        (forget_a_variance, "^res3 differs"),
        (forget_affine, "^res5 differs"),
        (round_to_half, "^res2 differs"),
        (transpose, "^res3 differs"),
        (lose_a_norm, "^5 entries missing .*res3.0.shortcut.norm"),
        (add_one, "^1 entries left over .*res2.7.conv1.weight"),
        (other_shape, "^1 entries of another shape .*res2.0.conv2.weight"),
    ],
)
def test_a_wrong_file_is_caught(weights, saved, corrupt, message):
    model = to_detectron2(weights)
    corrupt(model)
    with pytest.raises(VerificationError, match=message) as caught:
        prove(saved(model), weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("conventions", [USUAL, CAFFE])
def test_the_stride_in_the_wrong_convolution_is_caught(weights, saved, conventions):
    wrong = config(STRIDE_IN_1X1=not conventions.stride_in_1x1)
    with pytest.raises(VerificationError, match=r"^res3 differs .* by 0\.\d+ relative"):  # res2 has no stride
        prove(saved(to_detectron2(weights)), weights, conventions, wrong)


def test_a_source_with_strides_in_1x1_is_detectron2s_own(weights):
    """By a network of Detectron2's that is built here, so that one mistake in both networks would show."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(config(STRIDE_IN_1X1=True, NORM="BN")))
    cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT = list(STAGE_NAMES), 0
    theirs, images = build_backbone(cfg, ShapeSpec(channels=3)).eval(), torch.randn(1, 3, 65, 80)
    theirs.load_state_dict(to_detectron2(weights))
    with torch.no_grad():
        wanted = theirs(images)
        ours = source_network(ENCODER, weights, CAFFE).eval()(images)
        usual = source_network(ENCODER, weights, USUAL).eval()(images)
    assert all(torch.equal(ours[stage], wanted[stage]) for stage in STAGE_NAMES)
    assert not torch.allclose(usual["res3"], wanted["res3"])


def test_the_wrong_groups_are_caught(saved):
    weights = random_weights("resnet50_stem16_4x8d_out64")
    wanted = source_features(parse_encoder("resnet50_stem16_4x8d_out64"), weights, USUAL)
    right = config(NUM_GROUPS=4, WIDTH_PER_GROUP=8)
    verify(saved(to_detectron2(weights)), right, USUAL, wanted)
    with pytest.raises(VerificationError, match="entries of another shape"):
        verify(saved(to_detectron2(weights)), config(NUM_GROUPS=2, WIDTH_PER_GROUP=16), USUAL, wanted)


def test_training_mode_is_compared_too(weights, saved, monkeypatch):
    def frozen(config):
        """The same in evaluation, and batch statistics never."""
        network = detectron2_network(config).eval()
        network.train = lambda mode=True: network
        return network

    monkeypatch.setattr(verification, "detectron2_network", frozen)
    with pytest.raises(VerificationError, match=r"^res2 differs .* \(train mode\)"):
        prove(saved(to_detectron2(weights)), weights)


@pytest.mark.parametrize("conv", ["conv2", "conv3"])
def test_a_branch_that_a_zero_norm_silences_is_compared_too(weights, saved, conv):
    """``zero_init_residual``: at the beginning of training, nothing of the branches reaches the output."""
    silent = weights | {name: torch.zeros_like(t) for name, t in weights.items() if name.endswith("bn3.weight")}
    prove(saved(to_detectron2(silent)), silent)
    wrong = silent | {f"layer2.1.{conv}.weight": silent[f"layer2.1.{conv}.weight"].flip(0)}
    with pytest.raises(VerificationError, match=r"^res3 differs .* \(opened mode\)"):
        prove(saved(to_detectron2(wrong)), silent)
    for training in (False, True):  # which without opening see nothing
        features = []
        for one in (silent, wrong):
            network = source_network(ENCODER, {name: tensor.clone() for name, tensor in one.items()}, USUAL)
            with torch.no_grad():
                features.append(network.train(training)(test_images(USUAL)))
        assert all(torch.equal(features[0][stage], features[1][stage]) for stage in STAGE_NAMES)


def test_one_zero_among_a_norms_weights_hides_nothing(weights, saved):
    """A channel that training has switched off."""
    weights = weights | {"layer2.1.bn2.weight": weights["layer2.1.bn2.weight"].clone()}
    weights["layer2.1.bn2.weight"][5] = 0
    model = to_detectron2(weights)
    model["res3.1.conv2.weight"] = model["res3.1.conv2.weight"].clone()
    model["res3.1.conv2.weight"][5] += 1
    with pytest.raises(VerificationError, match=r"^res3 differs .* \(opened mode\)"):
        prove(saved(model), weights)


def test_a_file_without_zeros_needs_no_third_pass(weights):
    assert source_features(ENCODER, weights, USUAL)["opened"] == {}


# --- what proves nothing ----------------------------------------------------------------------------------------------


def silence(weights, pattern):
    return weights | {n: torch.zeros_like(t) for n, t in weights.items() if n.startswith(pattern) and t.dim()}


def test_features_that_are_all_zero_are_refused(weights, saved):
    dead = silence(weights, ("layer4.2.", "layer4.1.bn3.", "layer4.0.bn3.", "layer4.0.downsample.1."))
    with pytest.raises(VerificationError, match=r"^res5 of the source network is all zero \(eval mode\)"):
        prove(saved(to_detectron2(dead)), dead)


def test_features_that_are_not_finite_are_refused(weights, saved):
    broken = weights | {"layer3.0.bn1.running_var": -torch.ones(64)}
    with pytest.raises(VerificationError, match=r"^res4 of the source network is not finite \(eval mode\)"):
        prove(saved(to_detectron2(broken)), broken)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"model": 3, "__author__": "tests"})])
def test_a_file_that_detectron2_cannot_load_is_refused(weights, tmp_path, content):
    (tmp_path / "weights.pkl").write_bytes(content)
    with pytest.raises(VerificationError, match=r"^Detectron2 cannot load the converted file \(.+\)$"):
        prove(tmp_path / "weights.pkl", weights)


def test_a_network_that_nothing_was_loaded_into_computes_nan():
    """So that a place which is not filled cannot be right by chance."""
    state = detectron2_network(config()).state_dict()
    assert all(t.isnan().all() if t.is_floating_point() else (t == -1).all() for t in state.values())


def test_the_comparison_itself():
    def modes(features):
        return {"eval": {"res2": features}, "train": {"res2": features}, "opened": {}}

    same = torch.rand(2, 3, 4, 5) + 1
    assert compare(modes(same), modes(same))["train"]["res2"] == (0, 0)
    almost = compare(modes(8 * same), modes(8 * same + 1e-5))["eval"]["res2"]
    assert 0 < almost.relative < almost.absolute < 2e-5
    for other in (same + 1e-3, -same, same * float("nan"), same * float("inf"), same[:, :2], same[..., :4]):
        for wanted, got in ((same, other), (other, same)):
            with pytest.raises(VerificationError):
                compare(modes(wanted), modes(got))

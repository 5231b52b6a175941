"""torchvision's names and Detectron2's: the same parameters, one to one, and no others."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loco_det.convert import Conventions, to_detectron2
from loco_det.convert.detectron2_names import to_detectron2_name, to_torchvision_name
from loco_det.convert.networks import detectron2_config, detectron2_network
from loco_det.convert.sources.architecture import reference
from pretrain.encoders import RESNETS, parse_encoder

NAMES = {arch: list(reference(parse_encoder(arch))) for arch in RESNETS}


ENTRIES = {"resnet18": 120, "resnet34": 216, "resnet50": 318, "resnet101": 624, "resnet152": 930}  # 6 a conv
ENTRIES |= {"resnet50x2": 318, "wide_resnet50_2": 318, "resnext50_32x4d": 318, "resnet101x0.25": 624}


@pytest.mark.parametrize("arch", ENTRIES)
def test_names_and_shapes_are_exactly_detectron2s(arch):
    encoder = parse_encoder(arch)
    backbone = detectron2_network(detectron2_config(encoder, Conventions(), ""))
    wanted = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    assert {name: tensor.shape for name, tensor in to_detectron2(reference(encoder)).items()} == wanted
    assert len(wanted) == ENTRIES[arch]


@settings(deadline=None)
@given(st.sampled_from(RESNETS), st.integers(0, 2**32), st.integers(0, 1000))
def test_the_two_maps_are_inverse_on_any_part_of_an_encoder(arch, seed, count):
    names = list(NAMES[arch])
    random.Random(seed).shuffle(names)
    values = {name: object() for name in names[:count]}
    renamed = to_detectron2(values)
    assert list(renamed.values()) == list(values.values())  # as many, in the same order
    assert {to_torchvision_name(name): value for name, value in renamed.items()} == values


MAPS = [(to_detectron2_name, to_torchvision_name), (to_torchvision_name, to_detectron2_name)]
PIECES = r"((layer|res)[0-9]\.[0-9]{0,2}|stem)?\.?(conv|bn|shortcut|downsample\.)[0-9]?(\.norm)?\.(weight|running_mean)"


@settings(deadline=None)
@given(st.one_of(st.text(max_size=30), st.from_regex(PIECES, fullmatch=True)))
@pytest.mark.parametrize("there, back", MAPS)
def test_any_other_name_is_refused_or_comes_back(there, back, name):
    try:
        renamed = there(name)
    except ValueError as error:
        assert repr(name) in str(error)
    else:
        assert back(renamed) == name


@pytest.mark.parametrize(
    "name",
    ["fc.weight", "conv2.weight", "downsample.0.weight", "layer5.0.conv1.weight", "layer1.0.se.weight",
     "layer1.0.conv4.weight", "layer1.conv1.weight", "res2.0.conv1.weight", "conv1.weight\n"],
)  # fmt: skip
def test_names_that_torchvisions_encoder_has_not(name):
    with pytest.raises(ValueError, match="not the name of a torchvision ResNet encoder's parameter"):
        to_detectron2({name: None})


@pytest.mark.parametrize(
    "name",
    ["stem.fc.weight", "stem.conv2.weight", "stem.shortcut.weight", "res1.0.conv1.weight", "res6.0.conv1.weight",
     "res2.0.shortcut.conv1.weight", "res2.0.norm.weight", "layer1.0.conv1.weight", "res2.0.conv1.weight\n"],
)  # fmt: skip
def test_names_that_detectron2s_resnet_has_not(name):
    with pytest.raises(ValueError, match="not the name of a parameter of Detectron2's ResNet"):
        to_torchvision_name(name)

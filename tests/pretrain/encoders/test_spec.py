"""Names of encoders are parsed once, to one of two types that say the same as the name."""

import pytest
import torch

from pretrain.encoders import (
    BUILDERS,
    ENCODERS,
    NamedEncoder,
    ResNetShape,
    build_encoder,
    is_own_code,
    parse_encoder,
    resnet_shape,
)


@pytest.mark.parametrize("name", [*ENCODERS, "resnet50x2", "resnet18x0.5_same", "my.package.build", "unknown"])
def test_a_name_is_parsed_and_written_again(name):
    encoder = parse_encoder(name)
    assert encoder.name == str(encoder) == f"{encoder}" == name
    assert isinstance(encoder, ResNetShape) == ("resnet" in name and name not in BUILDERS)
    assert parse_encoder(encoder.name) == encoder and hash(parse_encoder(name)) == hash(encoder)


def test_other_spellings_are_the_same_shape():
    assert parse_encoder("resnet18_stem32_1x32d_out32") == parse_encoder("resnet18x.5") == resnet_shape("resnet18x0.5")


@pytest.mark.parametrize("name", ["resnet18x0.25", "resnet18x0.25_same", "shufflenetv2_50"])
def test_built_from_a_name_or_what_it_is_parsed_to(name):
    torch.manual_seed(0)
    one = build_encoder(name).state_dict()
    torch.manual_seed(0)
    other = build_encoder(parse_encoder(name)).state_dict()
    assert list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("shape", [(50, 64, 1, 64, 254), (18, 64, 2, 64, 64), (18, 64, 1, 32, 64), (50, 0, 1, 64, 256)])
def test_shapes_that_no_blocks_have_are_not_buildable(shape):
    shape = ResNetShape(*shape)
    assert not shape.is_buildable and resnet_shape(shape.name) is None


def test_own_code_is_what_has_dots_and_is_no_resnet():
    assert is_own_code("my.package.build") and NamedEncoder("a.b").is_own_code
    assert not any(map(is_own_code, ["resnet18x0.5", "presnet50", "unknown", "", None, 5, ["a.b"]]))


def test_unknown_names_are_refused_when_they_are_built():
    with pytest.raises(ValueError, match="unknown encoder 'unknown': choose one of resnet18"):
        build_encoder(NamedEncoder("unknown"))

"""A checkpoint that says which encoder it holds must not be contradicted by its shapes."""

import pytest
from weights import SMALL, random_weights

from loco_det.convert import load_source
from loco_det.convert.sources.metadata import check_agreement, parse_name
from pretrain.encoders import parse_encoder


@pytest.mark.parametrize("claimed", ["resnet50", "resnet18_same", "resnet18x0.5"])
def test_another_network_than_the_file_says_is_refused(claimed, refused):
    weights = random_weights(SMALL)
    refused({"state_dict": weights, "arch": claimed}, f"calls its network '{claimed}', but the weights are a {SMALL}")


def test_the_same_network_under_another_name_is_taken(save):
    for claimed in (SMALL, "resnet18_stem16_1x16d_out16", "my_resnet", ""):
        source, _ = load_source(save({"state_dict": random_weights(SMALL), "arch": claimed}))
        assert source.arch == SMALL and source.encoder == parse_encoder(SMALL)
    source, _ = load_source(save({"state_dict": random_weights(SMALL), "arch": f"{SMALL}_same"}))
    assert source.arch == f"{SMALL}_same"  # shapes do not show how it pads


@pytest.mark.parametrize(
    ("name", "own_code", "parsed"),
    [("resnet50.a1_in1k", False, "resnet50"), ("resnet18x0.5", False, "resnet18x0.5"), ("a.b.c", False, "a"),
     ("a.b.c", True, "a.b.c"), ("resnet18x0.5", True, "resnet18x0.5"), ("presnet50", True, "presnet50")],
)  # fmt: skip
def test_names_of_timms_weights_and_of_own_code(name, own_code, parsed):
    assert parse_name(name, own_code) == parse_encoder(parsed)


@pytest.mark.parametrize(
    ("claimed", "found", "agree"),
    [(None, "resnet50", True), ("resnet50", "resnet50", True), ("resnet50", "resnet50_same", True),
     ("resnet50", "resnet101", False), ("resnet50", "presnet50", False), ("resnet50x2", "resnet50", False),
     ("vit", "resnet50", True), ("my.code", "resnet50", False), ("resnetaa50d", "resnet50", False),
     ("resnetblur18", "resnet18", False), ("presnet50", "resnet50", True)],
)  # fmt: skip
def test_what_agrees(claimed, found, agree):
    claimed, found = claimed and parse_encoder(claimed), parse_encoder(found)
    if agree:
        check_agreement(claimed, found, "model/encoder.")
    else:
        with pytest.raises(ValueError):
            check_agreement(claimed, found, "model/encoder.")

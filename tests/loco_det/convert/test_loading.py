"""A converted file as Detectron2's backbone in Python: whole, or refused in a line; and nothing in it runs."""

import pickle

import pytest
import torch

from loco_det import convert_to_d2, load_backbone
from pretrain import build_encoder


@pytest.fixture
def converted(tmp_path):
    torch.manual_seed(0)
    torch.save(build_encoder("resnet18").state_dict(), tmp_path / "r18.pth")
    convert_to_d2(tmp_path / "r18.pth", tmp_path / "r18.pkl")
    return tmp_path / "r18.pkl"


def test_the_features_are_those_of_the_source(converted, tmp_path):
    encoder = build_encoder("resnet18").eval()
    encoder.load_state_dict(torch.load(tmp_path / "r18.pth", weights_only=True))
    backbone, images = load_backbone(converted), torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        wanted, found = encoder(images), backbone(images)
    for stage, features in wanted.items():
        torch.testing.assert_close(found[stage], features, rtol=1e-4, atol=1e-5)
    assert not backbone.training


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemError('it was run')",)


def test_nothing_in_the_weights_is_run(converted):
    converted.write_bytes(pickle.dumps({"model": Bomb(), "__author__": "loco-det"}))
    with pytest.raises(ValueError, match="r18.pkl"):
        load_backbone(converted)


def test_a_file_names_no_code(converted, tmp_path, monkeypatch):
    (tmp_path / "bomb_of_own.py").write_text("def go():\n    raise SystemError('it was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tmp_path / "other.yaml"
    config.write_text("MODEL:\n  ENCODER: bomb_of_own.go\n  BACKBONE: {NAME: build_encoder_fpn_backbone}\n")
    with pytest.raises(ValueError, match="code of your own: name it as `arch`"):
        load_backbone(converted, config)


@pytest.mark.parametrize(
    ("text", "said"),
    [("MODEL: 3\n", "no config of a backbone"), ("MODEL: {NOTHING: 1}\n", "NOTHING"), ("A: [\n", "other.yaml")],
)
def test_a_wrong_config_is_one_line(converted, tmp_path, text, said):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        load_backbone(converted, tmp_path / "other.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="name the one that was written with"):
        load_backbone(converted, tmp_path / "none.yaml")

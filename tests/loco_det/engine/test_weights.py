"""Weights of another network than the config's are refused before anything is built."""

import pickle

import pytest
import torch
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.engine.weights import check_network
from loco_det.modeling.timm.network import build_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as the converter writes them, of zeros: names of networks of timm, and a ResNet's."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("test_vit", "test_vit2", "test_convnext", "convnext_small", "vit_tiny_patch16_224",
                 "vit_tiny_patch16_384", "normed"):  # fmt: skip
        with torch.device("meta"):
            network = build_network("test_vit", final_norm=True) if name == "normed" else build_network(name)
        model = {f"network.{k}": torch.zeros(1).expand(v.shape) for k, v in network.state_dict().items()}
        torch.save({"model": model, "matching_heuristics": True}, root / f"{name}.pth")
    with open(root / "r18.pkl", "wb") as file:
        pickle.dump({"model": {"stem.conv1.weight": torch.zeros(8, 3, 7, 7).numpy()}, "__author__": "x"}, file)
    (root / "test_vit.yaml").write_text("")
    return root


def config(weights, name, **keys):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME = str(weights), name
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone" if name else "build_resnet_fpn_backbone"
    cfg.merge_from_list([word for pair in keys.items() for word in pair])
    return cfg


@pytest.mark.parametrize("weights, name, message", [
    ("test_vit.pth", "", "test_vit.pth holds a network of timm (cls_token, ...), and MODEL.BACKBONE.NAME "
                         "build_resnet_fpn_backbone is none: these weights were converted with a config of their own"),
    ("test_convnext.pth", "", "use the config lines that tools/convert_to_d2.py has printed"),
    ("r18.pkl", "test_vit", "holds no network of timm (its first tensor is stem.conv1.weight), and MODEL.TIMM.NAME is"),
    ("test_vit2.pth", "test_vit", "is no test_vit: it has no "),
    ("test_convnext.pth", "test_vit", "is no test_vit: it has no cls_token (and "),
    ("convnext_small.pth", "convnext_tiny", "it has stages.2.blocks.9.gamma, too"),  # Detectron2 would load it
    ("vit_tiny_patch16_384.pth", "vit_tiny_patch16_224", "has pos_embed of 1 x 577 x 192, not 1 x 197 x 192"),
])  # fmt: skip
def test_another_network_is_refused_in_one_line(folder, weights, name, message):
    with pytest.raises(ValueError) as error:
        check_network(config(folder / weights, name))
    assert message in str(error.value) and "\n" not in str(error.value) and str(folder / weights) in str(error.value)


def test_the_right_one_passes(folder, tmp_path):
    check_network(config(folder / "test_vit.pth", "test_vit"))
    check_network(config(f"{folder / 'test_vit.pth'}?matching_heuristics=True", "test_vit"))
    check_network(config(folder / "r18.pkl", ""))
    check_network(config(folder / "normed.pth", "test_vit"))  # its final norm is left out
    check_network(config(folder / "normed.pth", "test_vit", **{"MODEL.TIMM.FINAL_NORM": True}))
    with pytest.raises(ValueError, match="has no norm.weight"):
        check_network(config(folder / "test_vit.pth", "test_vit", **{"MODEL.TIMM.FINAL_NORM": True}))
    names = torch.load(folder / "test_vit.pth")["model"]
    torch.save({"model": {f"backbone.net.{k}": v for k, v in names.items()}}, tmp_path / "model_final.pth")
    check_network(config(tmp_path / "model_final.pth", "test_vit"))
    (tmp_path / "broken.pth").write_bytes(b"PK nothing")
    check_network(config(tmp_path / "broken.pth", "test_vit"))  # loading says what is wrong with it


def test_an_encoder_of_the_users_may_have_a_network(tmp_path):
    """Its names are behind ``encoder.`` in a detector, whatever its attributes are called."""
    names = ("backbone.bottom_up.encoder.network.0.weight", "encoder.network.0.weight")
    for index, name in enumerate(names):
        torch.save({"model": {name: torch.zeros(1)}}, tmp_path / f"{index}.pth")
        own = config(tmp_path / f"{index}.pth", "", **{"MODEL.BACKBONE.NAME": "build_encoder_fpn_backbone"})
        check_network(own)
        with pytest.raises(ValueError, match="holds no network of timm"):
            check_network(config(tmp_path / f"{index}.pth", "test_vit"))

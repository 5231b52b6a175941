"""MoCo's C4 heads against their description: Detectron2's, and one norm more on what res5 gives to boxes and masks."""

import pickle
import re

import pytest
import torch
from checkout import ROOT
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.structures import Boxes, Instances
from torch import nn

import loco_det.modeling.roi_heads  # noqa: F401, registers them
from loco_det.config import add_loco_config
from loco_det.engine.checkpoint import GuardedCheckpointer


def heads(name="Res5ROIHeadsExtraNorm", norm="naiveSyncBN"):
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RESNETS.NORM = name, 3, norm
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8, 4  # 64 channels after res5
    cfg.MODEL.MASK_ON, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = True, 0.0
    torch.manual_seed(0)
    return build_roi_heads(cfg, {"res4": ShapeSpec(channels=32, stride=16)})


def randomized(norm):
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(64) + 0.5)
    return norm


def detect(module):
    torch.manual_seed(1)
    boxes = Instances((64, 64), proposal_boxes=Boxes([[4.0, 4, 40, 50]]), objectness_logits=torch.zeros(1))
    with torch.no_grad():
        (found,), _ = module.eval()(None, {"res4": torch.randn(1, 32, 4, 4)}, [boxes])
    return found


KINDS = {"naiveSyncBN": NaiveSyncBatchNorm, "SyncBN": nn.SyncBatchNorm, "FrozenBN": FrozenBatchNorm2d}


@pytest.mark.parametrize(("norm", "kind"), KINDS.items())
def test_one_more_norm_of_the_backbones_kind(norm, kind):
    ours, stock = heads(norm=norm), heads("Res5ROIHeads", norm)
    more = set(ours.state_dict()) - set(stock.state_dict())
    assert more and all(name.startswith("res5.norm.") for name in more)  # as in detectors that MoCo's code has trained
    assert set(stock.state_dict()) < set(ours.state_dict())
    assert type(ours.res5[-1]) is kind and ours.res5[-1].num_features == 64
    assert len(ours.res5) == len(stock.res5) + 1


def test_boxes_and_masks_come_from_normalised_features():
    ours, stock = heads(), heads("Res5ROIHeads")
    stock.load_state_dict(ours.state_dict(), strict=False)
    norm = randomized(ours.res5.norm)
    plain, normalised = detect(stock), detect(ours)
    assert (plain.scores - normalised.scores).abs().max() > 1e-4
    stock.res5.register_forward_hook(lambda _, __, features: norm(features))  # what is described, from outside
    wanted = detect(stock)
    for field in ("scores", "pred_masks"):
        torch.testing.assert_close(normalised.get(field), wanted.get(field), rtol=0, atol=0)
    torch.testing.assert_close(normalised.pred_boxes.tensor, wanted.pred_boxes.tensor, rtol=0, atol=0)


def test_weights_of_a_classifier_fill_res5_in_the_heads(tmp_path):
    """C4 detectors have res5 in the heads; a converted checkpoint calls it as any other stage."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/detection/coco_finetune_c4_2x/resnet50_moco_v1_200ep.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = "cpu", 8, 4
    torch.manual_seed(0)
    model = build_model(cfg)
    places = [k for k in model.state_dict() if re.match(r"backbone\.|roi_heads\.res5\.\d", k)]
    names = {k: re.sub(r"^(backbone|roi_heads)\.", "", k) for k in places}
    given = {name: torch.rand_like(model.state_dict()[k].float()).numpy() for k, name in names.items()}
    content = {"model": given, "__author__": "test", "matching_heuristics": True}
    (tmp_path / "encoder.pkl").write_bytes(pickle.dumps(content))
    GuardedCheckpointer(model, str(tmp_path)).load(str(tmp_path / "encoder.pkl"))
    after = model.state_dict()
    assert "roi_heads.res5.2.conv3.norm.running_var" in names and "backbone.stem.conv1.weight" in names
    for k, name in names.items():
        assert k.endswith("num_batches_tracked") or torch.equal(after[k], torch.from_numpy(given[name])), k
    assert after["roi_heads.res5.norm.weight"].eq(1).all()

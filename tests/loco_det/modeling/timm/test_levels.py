"""A plain ViT under the light head: stages by interpolation and pooling, stored as a ResNet's are."""

import pytest
import torch
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.engine.trainer import Trainer
from loco_det.modeling.packed import pack
from loco_det.modeling.timm.backbone import TimmBackbone
from loco_det.modeling.timm.levels import PlainLevels


def test_levels_keep_their_place_in_the_image(monkeypatch):
    levels = PlainLevels(TimmBackbone("test_vit", pyramid=True), finest=8)
    assert {k: (v.channels, v.stride) for k, v in levels.output_shape().items()} == {
        "res3": (64, 8), "res4": (64, 16), "res5": (64, 32)}  # fmt: skip

    def centres(network, x, *_):
        rows, columns = (torch.arange(side // 16) * 16.0 + 8 for side in x.shape[2:])
        return [torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]]

    monkeypatch.setattr("loco_det.modeling.timm.backbone.run", centres)
    for name, stride in (("res3", 8), ("res4", 16), ("res5", 32)):
        columns = levels(torch.zeros(1, 3, 64, 128))[name][0, 1]
        assert columns.shape == (64 // stride, 128 // stride)
        inner = slice(1, -1) if stride < 16 else slice(None)  # the border is repeated
        assert torch.equal(columns[0, inner], (torch.arange(128 // stride) * float(stride) + stride / 2)[inner])


def light(*options):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file("configs/evaluate/light_small.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.LIGHT_HEAD.WIDTH", 32, "MODEL.BACKBONE.NAME",
                         "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 99, *options])  # fmt: skip
    torch.manual_seed(0)
    return Trainer.build_model(cfg)


@torch.no_grad()
@pytest.mark.parametrize("name, prefix", [("test_vit", "backbone.net."), ("test_convnext", "backbone.")])
def test_the_light_head_takes_networks_of_timm(name, prefix):
    model = light("MODEL.TIMM.NAME", name).eval()
    assert any(key.startswith(f"{prefix}network.") for key in model.state_dict())
    pixels = torch.randint(256, (3, 70, 90), dtype=torch.uint8)
    features = {key: pack(maps[0]) for key, maps in model.extract(pixels[None]).items()}
    first = [{"image": pixels}, {"features": features, "image_size": (70, 90)}]
    boxes = [found["instances"].pred_boxes.tensor for found in model(first)]
    assert len(boxes) == 2 and all(torch.isfinite(one).all() for one in boxes)


def test_a_vit_of_which_some_blocks_learn_is_refused():
    with pytest.raises(ValueError, match="set MODEL.BACKBONE.FREEZE_AT 99"):
        light("MODEL.TIMM.NAME", "test_vit", "MODEL.BACKBONE.FREEZE_AT", 5)

"""What a config does that its user may not have meant."""

import pytest
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.engine.checks import freeze_warning


@pytest.mark.parametrize("name, freeze_at, learns", [
    ("test_vit", 5, "the first 4 of test_vit's 6 blocks"), ("test_vit", 6, "the first 5 of test_vit's 6 blocks"),
    ("test_vit", 7, None), ("test_vit", 99, None), ("test_vit", 4, None), ("test_vit", 0, None),
    ("test_convnext", 5, None), ("", 5, None),
])  # fmt: skip
def test_a_vit_that_is_half_frozen(name, freeze_at, learns):
    """5 freezes all of a ResNet and of hierarchical networks; a ViT's blocks are counted."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.MODEL.TIMM.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = name, freeze_at
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone" if name else "build_resnet_fpn_backbone"
    said = freeze_warning(cfg)
    assert said is None if learns is None else learns in said and said.endswith("99 freezes all")

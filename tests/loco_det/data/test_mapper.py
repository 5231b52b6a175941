"""ImageMapper where Detectron2's mapper fails."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from loco_det.data.mapper import ImageMapper


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(("width", "height"), [(1, 3000), (3000, 1)])
def test_a_very_narrow_image_keeps_a_pixel(tmp_path, width, height, is_train):
    path, cfg = str(tmp_path / "a.png"), get_cfg()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(path)
    cfg.INPUT.RANDOM_FLIP = "none"
    box = {"bbox": [0, 0, width, height], "bbox_mode": 1, "category_id": 0}
    record = {"file_name": path, "width": width, "height": height, "annotations": [box]}
    found = ImageMapper(cfg, is_train)(record)
    assert sorted(found["image"].shape[1:]) == [1, 1333] and (found["image"] == 200).all()
    if is_train:
        assert found["instances"].gt_boxes.tensor.tolist() == [[0, 0, *reversed(found["image"].shape[1:])]]

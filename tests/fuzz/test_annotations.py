"""Check, loader, mapper and both evaluators never disagree: what the check passes goes through all of them."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
import torch
from cases import one_line
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.structures import Boxes, Instances
from mutate import VALUES, changed_bytes, changed_values
from PIL import Image

from loco_det.data.checks.coco import check_coco
from loco_det.data.coco_loader import load_coco
from loco_det.evaluation.analysis import analyze
from loco_det.evaluation.coco import FastCOCOEvaluator, ReducedCOCOEvaluator

HEIGHT, WIDTH = 20, 30
SQUARE = {"bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0, "segmentation": [[2, 2, 10, 2, 10, 8, 2, 8]]}
CODE = {"size": [HEIGHT, WIDTH], "counts": [42, 6, 552]}
GOOD = {
    "info": {"year": 2017},
    "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)],
    "categories": [{"id": 1, "name": "dust"}, {"id": 2, "name": "cell"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, **SQUARE},
        {"id": 2, "image_id": 2, "category_id": 2, **SQUARE},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [2, 2, 1, 6], "area": 6, "iscrowd": 0, "segmentation": CODE},
        {"id": 4, "image_id": 2, "category_id": 2, "bbox": [2, 2, 1, 6], "area": 6, "iscrowd": 1, "segmentation": CODE},
    ],
}
COCO_VALUES = [
    *VALUES, {"size": [HEIGHT, WIDTH], "counts": "0"}, {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in ("1.png", "2.png"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / name)
    return str(folder)


def detected(count, masks):
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.tensor([[2.0, 2, 10, 8], [0, 0, 3, 8]]))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.5]), torch.tensor([0, 1]).clamp(max=count - 1)
    if masks:
        found.pred_masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
        found.pred_masks[:, 2:8, 2:9] = True
    return found


def go_through(path, images, name, masks, folder):
    """Load, map and evaluate; the results of both evaluators are the same."""
    records = load_coco(path, images, name, masks)
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.INPUT.MIN_SIZE_TRAIN = masks, "bitmask", (32,)
    mapper = DatasetMapper(cfg, is_train=True)
    trained = filter_images_with_only_crowd_annotations(records)
    assert trained
    for record in trained:
        objects = mapper(record)["instances"]
        assert not masks or not len(objects) or objects.has("gt_masks")
    results = []
    for kind in (FastCOCOEvaluator, ReducedCOCOEvaluator):
        evaluator = kind(name, output_dir=str(folder))
        evaluator.reset()
        for record in records:
            found = detected(len(MetadataCatalog.get(name).thing_classes), masks)
            evaluator.process([record], [{"instances": found}])
        with contextlib.redirect_stdout(io.StringIO()):
            results.append(json.dumps(evaluator.evaluate()))
    assert results[0] == results[1]
    analyze(path, folder / "coco_instances_results.json")


def test_what_the_check_passes_goes_through(tmp_path, images, each_case):
    path, name, passed = str(tmp_path / "some.json"), "goes_through", []

    def case(rng):
        masks = rng.random() < 0.7
        if rng.random() < 0.9:
            data = json.dumps(changed_values(rng, GOOD, COCO_VALUES)).encode()
        else:
            data = changed_bytes(rng, json.dumps(GOOD).encode())
        with open(path, "wb") as f:
            f.write(data)
        try:
            full, quick = (check_coco(path, images, full=full, masks=masks)[0] for full in (True, False))
        except ValueError as error:
            one_line(error, path)
            with pytest.raises(ValueError):
                load_coco(path, images, name, masks)
            return
        "\n".join(full.lines()).encode()
        assert set(full.of("error")) - {"image_size"} == set(quick.of("error"))
        if full.of("error"):
            return
        passed.append(path)
        MetadataCatalog.get(name).set(json_file=path, image_root=images, evaluator_type="coco")
        try:
            go_through(path, images, name, masks, tmp_path)
        finally:
            MetadataCatalog.remove(name)

    each_case(case, 250)
    assert passed or "FUZZ_SEED" in os.environ

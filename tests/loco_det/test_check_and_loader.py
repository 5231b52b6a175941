"""Check, loader, mapper and both evaluators never disagree: what the check passes goes through all of them."""

import contextlib
import copy
import io
import json
import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.structures import Boxes, Instances
from PIL import Image

from loco_det.analysis import analyze
from loco_det.coco_evaluation import FastCOCOEvaluator, ReducedCOCOEvaluator
from loco_det.data.checks import check_coco
from loco_det.data.coco_loader import load_coco

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
VALUES = [
    None, True, 0, -1, 1, 2, 0.5, -0.0, 1e30, float("nan"), float("inf"), 2**53, 2**63, 10**400, "", "1", "é", "\udce9",
    "../1.png", "a\0b", [], [1], [[1]], [[1, 2, 3, 4, 5, 6]], [[[1, 2], [3, 4], [5, 6]]], [1, 2, 3, 4], {}, [{}],
    {"size": [HEIGHT, WIDTH], "counts": "0"}, {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
]  # fmt: skip


def changed(seed):
    """The good file with one to three values replaced, dropped, doubled or scaled."""
    rng, content = random.Random(seed), copy.deepcopy(GOOD)
    for _ in range(rng.choice([1, 1, 2, 3])):
        node, key = content, rng.choice(list(content))
        while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
            node = node[key]
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        how = rng.random()
        if how < 0.15:
            del node[key]
        elif how < 0.25 and isinstance(node, list):
            node.append(copy.deepcopy(rng.choice(node)))
        elif how < 0.4 and isinstance(node[key], int | float):
            node[key] = node[key] * rng.choice([-1, 10, 1e6, 0.001])
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        if not content:
            break
    return content


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


@pytest.mark.parametrize("first", range(0, 250, 50))
def test_what_the_check_passes_goes_through(tmp_path, images, first):
    passed = 0
    for seed in range(first, first + 50):
        path, name, masks = str(tmp_path / "some.json"), f"goes_through_{seed}", seed % 3 > 0
        with open(path, "w") as f:
            json.dump(changed(seed), f)
        full, quick = (check_coco(path, images, full=full, masks=masks)[0] for full in (True, False))
        "\n".join(full.lines()).encode()
        assert set(full.of("error")) - {"image_size"} == set(quick.of("error")), seed
        if full.of("error"):
            continue
        passed += 1
        MetadataCatalog.get(name).set(json_file=path, image_root=images, evaluator_type="coco")
        try:
            go_through(path, images, name, masks, tmp_path)
        except Exception as error:
            raise AssertionError(f"seed {seed}, masks {masks}: {path}: {error}") from error
        finally:
            MetadataCatalog.remove(name)
    assert 3 < passed < 40

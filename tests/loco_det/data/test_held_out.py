"""The held-out part of the training images: which ones, the same for ever, and how it is trained and tested on."""

import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from loco_det.config import add_loco_config
from loco_det.data.datasets import prepare_datasets
from loco_det.data.low_shot import draw
from loco_det.evaluation.build import evaluator_type

SQUARE = {"bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0, "segmentation": [[2, 2, 11, 2, 11, 11, 2, 11]]}


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """A config of custom data with twenty images to train on and one to test on."""
    for part, ids in (("train", range(1, 21)), ("test", [99])):
        images = [{"id": i, "file_name": f"{i}.png", "height": 16, "width": 16} for i in ids]
        objects = [{"id": i, "image_id": i, "category_id": 7, **SQUARE} for i in ids]
        content = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "square"}]}
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
        for i in ids:
            Image.new("RGB", (16, 16)).save(tmp_path / f"{i}.png")
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.DATASETS.CUSTOM.NAME = f"held_{tmp_path.name}"
    for part in ("TRAIN", "TEST"):
        cfg.DATASETS.CUSTOM[f"{part}_JSON"] = str(tmp_path / f"{part.lower()}.json")
        cfg.DATASETS.CUSTOM[f"{part}_IMAGES"] = str(tmp_path)
    yield cfg
    for name in [name for name in DatasetCatalog.list() if name.startswith(cfg.DATASETS.CUSTOM.NAME)]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def ids(names):
    return [record["image_id"] for name in names for record in DatasetCatalog.get(name)]


def test_it_is_drawn_by_hash_from_the_training_images(cfg):
    cfg.DATASETS.HELD_OUT = 20
    prepare_datasets(cfg)
    name = cfg.DATASETS.CUSTOM.NAME
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((f"{name}_train_fit",), (f"{name}_train_held_out",))
    held_out = ids(cfg.DATASETS.TEST)
    assert held_out == draw(range(1, 21), "20%", 0) == [7, 15, 18, 20]
    assert sorted(ids(cfg.DATASETS.TRAIN) + held_out) == list(range(1, 21))
    assert evaluator_type(cfg.DATASETS.TEST[0]) == "coco" and not MetadataCatalog.get(cfg.DATASETS.TEST[0]).get(
        "json_file"
    )
    assert MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes == ["square"]


def test_a_finished_runs_config_names_the_same_parts(cfg):
    cfg.DATASETS.HELD_OUT = 20
    prepare_datasets(cfg)
    before = ids(cfg.DATASETS.TEST)
    for part in ("TRAIN", "TEST"):  # as in the run's config.yaml, but registered already
        cfg.DATASETS.CUSTOM[f"{part}_JSON"] = cfg.DATASETS.CUSTOM[f"{part}_IMAGES"] = ""
    prepare_datasets(cfg, eval_only=True)
    assert ids(cfg.DATASETS.TEST) == before


def test_without_it_nothing_is_held_out(cfg):
    prepare_datasets(cfg)
    assert len(ids(cfg.DATASETS.TRAIN)) == 20 and ids(cfg.DATASETS.TEST) == [99]


@pytest.mark.parametrize(
    ("percent", "message"),
    [
        (-1, "DATASETS.HELD_OUT is -1, but must be a percentage from 0 to 99"),
        (100, "DATASETS.HELD_OUT is 100, but must be"),
        (4, "DATASETS.HELD_OUT: data set .*: 4% of 20 images cannot be drawn"),
    ],
)
def test_a_share_that_cannot_be_drawn_is_refused(cfg, percent, message):
    cfg.DATASETS.HELD_OUT = percent
    with pytest.raises(ValueError, match=message):
        prepare_datasets(cfg)

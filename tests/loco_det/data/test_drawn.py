"""Subsets of data sets that are drawn by hash."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from loco_det.data.drawn import draw_images, undrawn
from loco_det.data.low_shot import draw


@pytest.fixture
def registered():
    """``registered(name, ids)``: a data set with these images, gone after the test with what was made of it."""
    before = set(DatasetCatalog.list())

    def register(name, ids):
        DatasetCatalog.register(name, lambda: [{"image_id": i} for i in ids])
        MetadataCatalog.get(name).set(json_file="a.json", evaluator_type="pascal_voc", thing_classes=["a"])

    yield register
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_draw_is_that_of_the_low_shot_sets(registered):
    registered("whole", range(20))
    names = draw_images(["whole"], 5)
    assert names == ("whole_drawn5",) == draw_images(["whole"], 5)
    assert [record["image_id"] for record in DatasetCatalog.get("whole_drawn5")] == draw(range(20), 5, 0)
    metadata = MetadataCatalog.get("whole_drawn5")
    assert metadata.evaluator_type == "coco" and metadata.thing_classes == ["a"] and not metadata.get("json_file")


def test_names_of_whole_sets_stay(registered):
    registered("whole", range(20))
    assert draw_images(["whole"], 0) == draw_images(["whole"], 20) == draw_images(["whole"], 30) == ("whole",)
    assert undrawn(["whole_drawn5", "coco_2017_train_10k_seed0", "a_drawn"]) == (
        "whole",
        "coco_2017_train_10k_seed0",
        "a_drawn",
    )


def test_what_cannot_be_drawn_is_refused(registered):
    registered("whole", [1, 1, 2, 3])
    with pytest.raises(ValueError, match="-1 images"):
        draw_images(["whole"], -1)
    with pytest.raises(ValueError, match="two images have the same id"):
        draw_images(["whole"], 3)

"""Loading COCO files: records as Detectron2's, of files that Detectron2 does not read, and without masks."""

import json

import pytest
from coco_example import GOOD
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances

from loco_det.data.coco_loader import load_coco, use_own_reader


@pytest.fixture
def new_name():
    """Names of data sets that are forgotten after the test."""
    names = []

    def name():
        names.append(f"coco_files_{len(names)}")
        return names[-1]

    yield name
    for used in names:
        MetadataCatalog.pop(used, None)
        DatasetCatalog.pop(used, None)


def test_records_are_those_of_detectron2(write_coco, new_name):
    path, ours, theirs = write_coco(GOOD), new_name(), new_name()
    assert load_coco(path, "images", ours) == load_coco_json(path, "images", theirs)
    kept = [MetadataCatalog.get(n).as_dict() for n in (ours, theirs)]
    assert {**kept[0], "name": ""} == {**kept[1], "name": ""}


def test_records_without_masks(write_coco, new_name):
    first, second = load_coco(write_coco(GOOD), "images", new_name(), masks=False)
    assert [a["category_id"] for a in first["annotations"] + second["annotations"]] == [1, 1, 0, 1, 1]
    assert not any("segmentation" in a for a in first["annotations"] + second["annotations"])


def test_own_reader(write_coco, new_name):
    """Of what Detectron2 has registered, again with other masks; a set with keypoints stays Detectron2's."""
    path, name, other = write_coco("\ufeff" + json.dumps(GOOD)), new_name(), new_name()
    register_coco_instances(name, {}, path, "images")
    register_coco_instances(other, {"keypoint_names": ["nose"]}, path, "images")
    with pytest.raises(ValueError, match="BOM"):
        DatasetCatalog.get(name)
    use_own_reader()
    assert len(DatasetCatalog.get(name)[0]["annotations"]) == 1  # the other one has no usable polygon
    use_own_reader(masks=False)
    assert len(DatasetCatalog.get(name)[0]["annotations"]) == 2
    with pytest.raises(ValueError, match="BOM"):
        DatasetCatalog.get(other)


def test_other_categories_than_registered(write_coco, new_name):
    name = new_name()
    MetadataCatalog.get(name).thing_classes = ["cat"]
    with pytest.raises(ValueError, match=f"its categories are not those of the data set {name}; train on it as DATA"):
        load_coco(write_coco(GOOD), "images", name)

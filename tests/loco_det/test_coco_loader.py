"""Loading COCO files: records as Detectron2's, of files that Detectron2 does not read, and without masks."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances

from loco_det.data.coco_loader import load_coco, use_own_reader

GOOD = {
    "images": [
        {"id": 7, "file_name": "b/é.png", "height": 20, "width": 30},
        {"id": 2, "file_name": "a.png", "height": 20, "width": 30},
    ],
    "categories": [{"id": 5, "name": "cell"}, {"id": 3, "name": "dust"}],
    "annotations": [
        {"id": 4, "image_id": 7, "category_id": 3, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0,
         "segmentation": [[2, 2, 10, 2, 10, 8, 2, 8], [1, 2]]},
        {"id": 9, "image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 20], "area": 20, "iscrowd": 1,
         "segmentation": {"size": [20, 30], "counts": [0, 20, 580]}},
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": False,
         "segmentation": {"size": [20, 30], "counts": "0d0Tb0"}},
        {"id": 3, "image_id": 2, "category_id": 5, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0,
         "segmentation": [[2, 2, 10, 2]]},
        {"id": 8, "image_id": 2, "category_id": 5, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0},
    ],
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(content, name="some.json"):
        path = tmp_path / name
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


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


def test_records_are_those_of_detectron2(write, new_name):
    path, ours, theirs = write(GOOD), new_name(), new_name()
    assert load_coco(path, "images", ours) == load_coco_json(path, "images", theirs)
    kept = [MetadataCatalog.get(n).as_dict() for n in (ours, theirs)]
    assert {**kept[0], "name": ""} == {**kept[1], "name": ""}


def test_records_without_masks(write, new_name):
    first, second = load_coco(write(GOOD), "images", new_name(), masks=False)
    assert [a["category_id"] for a in first["annotations"] + second["annotations"]] == [1, 1, 0, 1, 1]
    assert not any("segmentation" in a for a in first["annotations"] + second["annotations"])


def test_own_reader(write, new_name):
    """Of what Detectron2 has registered, again with other masks; a set with keypoints stays Detectron2's."""
    path, name, other = write("\ufeff" + json.dumps(GOOD)), new_name(), new_name()
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


def test_other_categories_than_registered(write, new_name):
    name = new_name()
    MetadataCatalog.get(name).thing_classes = ["cat"]
    with pytest.raises(ValueError, match=f"its categories are not those of the data set {name}; train on it as DATA"):
        load_coco(write(GOOD), "images", name)

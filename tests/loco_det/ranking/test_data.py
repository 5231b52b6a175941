"""The data of an evaluation: known names, files of one's own, and what is wrong with them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from loco_det.ranking.data import KNOWN, NARROW, find_data

SQUARE = {"bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0, "segmentation": [[2, 2, 11, 2, 11, 11, 2, 11]]}


@pytest.fixture
def write(tmp_path):
    """``write(side, train, test)``: the four words of data whose parts have objects of the classes given."""

    def write(side=128, train=(1, 2), test=(1, 2), classes=("ship", "tree")):
        words = []
        folder = tmp_path / "my set" / "annotations"
        folder.mkdir(parents=True, exist_ok=True)
        for part, labels in (("train", train), ("test", test)):
            Image.new("RGB", (side + 32, side)).save(tmp_path / "1.png")
            image = {"id": 1, "file_name": "1.png", "height": side, "width": side + 32}
            objects = [{"id": i, "image_id": 1, "category_id": k, **SQUARE} for i, k in enumerate(labels, 1)]
            categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
            path = folder / f"{part}.json"
            path.write_text(json.dumps({"images": [image], "annotations": objects, "categories": categories}))
            words += [str(path), str(tmp_path)]
        return words

    return write


def test_known_names(tmp_path):
    for name in KNOWN:
        data = find_data([name], tmp_path)
        assert data.name == name and not data.custom and data.images.is_relative_to(tmp_path)


@pytest.mark.parametrize(("side", "resized"), [(128, 128), (60, 96), (250, 256), (399, 384), (400, None), (900, None)])
def test_the_recipe_follows_the_images(write, side, resized):
    words = write(side)
    data = find_data(words, Path())
    assert data.side == resized and data.config == (NARROW if resized else KNOWN["coco"][0])
    assert data.name == "my_set" and data.custom["NAME"] == "my_set" and data.custom["TEST_JSON"] == words[2]
    assert data.record["classes"] == ["ship", "tree"] and data.record["train_images"] == 1
    assert len(data.record["test"]["sha256"]) == 64 and data.notes == []


def test_a_class_without_test_objects_is_said(write):
    data = find_data(write(test=(1, 1)), Path())
    assert data.notes == ["The test images have no object of tree: AP is the mean over the other classes."]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"test": ()}, r"test.json: there is no object to test on|test.json: .*object"),
        ({"train": ()}, r"train.json: .*object"),
    ],
)
def test_a_part_without_objects(write, parts, message):
    with pytest.raises(ValueError, match=message):
        find_data(write(**parts), Path())


def test_other_categories(write, tmp_path):
    words = write()
    other = json.loads(Path(words[2]).read_text())
    other["categories"][1]["name"] = "rock"
    Path(words[2]).write_text(json.dumps(other))
    with pytest.raises(ValueError, match="list different categories"):
        find_data(words, Path())


@pytest.mark.parametrize("words", [["imagenet"], ["a.json", "images"], ["coco", "voc"]])
def test_other_words_are_refused(words):
    with pytest.raises(
        ValueError, match="--data takes coco, cityscapes, voc, or four words, TRAIN.json IMAGES TEST.json"
    ):
        find_data(words, Path())


def test_a_name_that_is_registered_already_is_changed(write, tmp_path):
    words = write()
    folder = tmp_path / "coco_2017"
    (tmp_path / "my set").rename(folder)
    words[0], words[2] = (str(folder / "annotations" / f"{part}.json") for part in ("train", "test"))
    assert find_data(words, Path()).name == "own_coco_2017"

"""Pascal VOC: the reader and the loader against Detectron2's, hostile annotations, the checks before training."""

import functools
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances, register_pascal_voc
from PIL import Image
from voc_example import annotation, write_voc

from loco_det.config import add_loco_config
from loco_det.data.checks.voc import check_voc
from loco_det.data.datasets import prepare_datasets
from loco_det.data.voc_files import MOST_BYTES, read_annotation, read_split
from loco_det.data.voc_loader import load_voc, use_voc_reader
from loco_det.demo_scenes.writing import make_demo_data

IMAGES = {
    "000001": [("dog", 0, (5, 6, 14, 15)), ("person", 1, (1, 1, 40, 30))],
    "000002": [("cat", 0, (2, 3, 2, 3))],
}


@pytest.fixture
def folder(tmp_path):
    write_voc(tmp_path / "VOC2007", IMAGES)
    return tmp_path / "VOC2007"


@pytest.fixture
def registered(folder):
    """The name of the folder, registered as Detectron2 registers VOC's."""
    name = "voc_of_test"
    register_pascal_voc(name, str(folder), "trainval", 2007)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def check(folder, **options):
    return check_voc(str(folder), "trainval", CLASS_NAMES, **options)


def write(folder, objects, name="000001", **size):
    (folder / "Annotations" / f"{name}.xml").write_text(annotation(objects, **size))


def findings(report):
    return {kind: found.count for kind, found in report.findings.items()}


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_loader_gives_what_detectron2_gives(folder):
    expected = load_voc_instances(str(folder), "trainval", CLASS_NAMES)
    assert load_voc(str(folder), "trainval", CLASS_NAMES) == expected
    assert expected[0]["annotations"][1]["bbox"] == [0, 0, 40, 30]


def test_the_demos_layout_is_read_by_both(tmp_path):
    make_demo_data(tmp_path / "demo", num_train=2, num_val=1, size=(64, 96), workers=1, layouts=("voc",))
    root = tmp_path / "demo" / "voc"
    for year, split, images in (("2007", "trainval", 2), ("2012", "trainval", 2)):
        expected = load_voc_instances(str(root / f"VOC{year}"), split, CLASS_NAMES)
        found = load_voc(str(root / f"VOC{year}"), split, CLASS_NAMES)
        assert found == expected and len(found) == images
    (one,) = load_voc(str(root / "VOC2007"), "test", CLASS_NAMES)  # Detectron2 cannot read a list of one image
    assert one["image_id"] == "000002" and Image.open(one["file_name"]).size == (96, 64)
    for split in ("trainval", "test"):
        assert not check_voc(str(root / "VOC2007"), split, CLASS_NAMES, decode=True).of("error")


def test_detectron2s_sets_are_read_by_it(registered):
    use_voc_reader()
    assert isinstance(DatasetCatalog[registered], functools.partial)
    assert isinstance(DatasetCatalog["voc_2012_train"], functools.partial)
    assert [record["image_id"] for record in DatasetCatalog.get(registered)] == list(IMAGES)


def test_fields_that_may_be_missing_and_fractions(folder):
    text = (
        annotation([("dog", 0, (1.5, 2, 9.25, 9))]).replace("<difficult>0</difficult>", "").replace("30<", " 30.0\n<")
    )
    (folder / "Annotations/000001.xml").write_text(text)
    (thing,) = read_annotation(str(folder), "000001").objects
    assert (thing.box, thing.difficult) == ((1.5, 2, 9.25, 9), False)


def test_parts_of_objects_are_no_objects(folder):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    path = folder / "Annotations/000001.xml"
    path.write_text(annotation([("dog", 0, (5, 6, 14, 15))]).replace("</object>", part))
    (thing,) = read_annotation(str(folder), "000001").objects
    assert (thing.name, thing.box) == ("dog", (5, 6, 14, 15))


GOOD = annotation(IMAGES["000001"])
BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>\n' + GOOD.replace("dog", "&b;")
REMOTE = '<!DOCTYPE a SYSTEM "file:///etc/passwd">\n' + GOOD
FAULTS = {
    BOMB: "has a DTD",
    REMOTE: "has a DTD",
    GOOD.replace("dog", "&b;"): "undefined entity",
    "": "no element found",
    "{}": "not well-formed",
    GOOD[:200]: "no element found|unclosed",
    GOOD.replace("annotation>", "html>"): "its root is <html>, not <annotation>",
    GOOD.replace("<width>40</width>", ""): "it lacks size/width",
    GOOD.replace("<width>40", "<width>0"): "size/width is 0, not a positive",
    GOOD.replace("<width>40", "<width>1e99"): "size/width is 1e\\+99, not a positive",
    GOOD.replace("<name>dog</name>", ""): "object 1 lacks name",
    GOOD.replace("<xmin>5</xmin>", ""): r"object 1 \(dog\) lacks bndbox/xmin",
    GOOD.replace("<xmin>5", "<xmin>five"): r"xmin of object 1 \(dog\) is 'five', not a number",
    GOOD.replace("dog", "d\no\ng").replace("<xmin>5", "<xmin>f\n5"): r"xmin of object 1 \(d o g\) is 'f\\n5'",
    GOOD.replace("<xmin>5", "<xmin>nan"): "'nan', not a number",
    GOOD.replace("<xmin>5", "<xmin>1_0"): "'1_0', not a number",
    GOOD.replace("<difficult>1", "<difficult>maybe"): r"difficult of object 2 \(person\) is 'maybe', not 0 or 1",
    '<?xml version="1.0" encoding="klingon"?>' + GOOD: "unknown encoding",
    "<annotation>" + "<a>" * 60 + "</a>" * 60 + "</annotation>": "more than 50 levels",
    GOOD + " " * MOST_BYTES: "more than 4 MiB",
}


@pytest.mark.parametrize(("text", "said"), FAULTS.items(), ids=range(len(FAULTS)))
def test_faulty_annotations_get_one_line_that_names_the_file(folder, text, said):
    (folder / "Annotations/000001.xml").write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        read_annotation(str(folder), "000001")
    assert str(error.value).startswith(str(folder / "Annotations/000001.xml: ")) and "\n" not in str(error.value)
    report = check(folder)
    assert findings(report)["file_broken"] == 1 and report.images == 2


def test_damaged_annotations_are_read_or_refused_in_one_line(folder):
    rng, path = np.random.default_rng(0), folder / "Annotations/000001.xml"
    refused = 0
    for _ in range(400):
        data = bytearray(GOOD.encode())
        for _ in range(rng.integers(1, 4)):
            start = rng.integers(len(data))
            data[start : start + rng.integers(0, 20)] = rng.bytes(rng.integers(0, 5))
        path.write_bytes(data)
        try:
            read_annotation(str(folder), "000001")
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert 100 < refused < 400


def test_the_list_of_a_class_is_not_the_list_of_images(folder):
    path = folder / "ImageSets/Main/trainval.txt"
    path.write_text("\ufeff000001\r\n\n 000002 \n")
    assert read_split(str(folder), "trainval") == ["000001", "000002"]
    path.write_text("000001 -1\n000002  1\n")
    with pytest.raises(ValueError, match="line 1: '000001 -1' is not the name of an image"):
        read_split(str(folder), "trainval")
    path.write_bytes(b"\xff\xfe0\0")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_split(str(folder), "trainval")


# --- checks -----------------------------------------------------------------------------------------------------------


def test_nothing_to_find_and_counts_per_class(folder):
    report = check(folder)
    assert findings(report) == {"difficult": 1, "category_empty": 17}
    assert (report.images, report.annotations, len(report.classes)) == (2, 3, 20)
    places = {name: index for index, name in report.classes.items()}
    assert report.table[places["dog"]] == {"images": 1, "instances": 1, "small": 1, "medium": 0, "large": 0}
    assert report.table[places["person"]]["medium"] == 1
    assert findings(check(folder, full=False)) == {"difficult": 1}


OBJECTS = {  # kind: the box of a dog
    "corners_swapped": (14, 6, 5, 15),
    "box_flat": (5, 6, 4, 15),
    "box_outside": (41, 6, 50, 15),
    "box_cut": (5, 6, 42, 15),
}


@pytest.mark.parametrize(("kind", "box"), OBJECTS.items())
def test_boxes(folder, kind, box):
    write(folder, [("dog", 0, box), ("dog", 0, (5, 6, 41, 30))])  # a pixel beyond the border is rounding
    report = check(folder)
    assert findings(report) == {kind: 1, "category_empty": 18}
    corners = ", ".join(f"{key} {value}" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    assert report.findings[kind].examples == [f"object 1 (dog) of 000001.xml: {corners}"]


def test_classes_files_and_sizes(folder):
    write(folder, [("dragon", 0, (5, 6, 14, 15))], width=41)
    (folder / "JPEGImages/000002.jpg").rename(folder / "JPEGImages/000002.JPG")
    path = folder / "ImageSets/Main/trainval.txt"
    path.write_text("000001\n000002\n000002\n000003\n../000004\n")
    (folder / "000004.jpg").write_bytes(b"")
    report = check(folder)
    assert {kind: found.examples[0] for kind, found in report.of("error").items()} == {
        "class_unknown": "object 1 (dragon) of 000001.xml",
        "image_missing": f"{folder}/JPEGImages/000002.jpg: the folder has 000002.JPG, which differs in upper and lower "
        "case",
        "image_size": "000001.jpg: 40x30, annotated as 41x30 (width x height)",
        "file_missing": f"{folder}/Annotations/000003.xml",
        "image_outside": "../000004.jpg",
    }
    assert list(report.of("warning")) == ["name_listed_twice"]
    assert "image_outside" not in findings(check(folder, allow_outside=True))


def test_nothing_to_train_on(folder):
    write_voc(folder, {"000001": [], "000002": []})
    assert check(folder).findings["empty"].examples == ["no objects"]
    (folder / "ImageSets/Main/trainval.txt").write_text("\n")
    assert check(folder).findings["empty"].examples == ["no images in ImageSets/Main/trainval.txt"]


# --- before training --------------------------------------------------------------------------------------------------


def config(name, *changes):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 20
    cfg.merge_from_list(list(changes))
    return cfg


def said(cfg):
    with pytest.raises((ValueError, OSError)) as error:
        prepare_datasets(cfg)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_training_refuses(folder, registered):
    prepare_datasets(config(registered))
    assert said(config(registered, "MODEL.MASK_ON", True)) == (
        "data set voc_of_test has boxes, no masks: set MODEL.MASK_ON False"
    )
    assert "voc_of_test has 20 classes" in said(config(registered, "MODEL.ROI_HEADS.NUM_CLASSES", 8))
    write(folder, [("dog", 0, (14, 6, 5, 15))])
    assert said(config(registered)) == (
        f"{folder}: boxes whose xmax is left of xmin, or whose ymax is above ymin (1): object 1 (dog) of 000001.xml: "
        "xmin 14, ymin 6, xmax 5, ymax 15. training takes the box mirrored, evaluation never matches it: write the "
        "left, top, right and bottom pixel. For all of them: python tools/check_dataset.py voc_of_test"
    )
    (folder / "Annotations/000001.xml").write_text(BOMB)
    assert "Annotations/000001.xml: it has a DTD (<!DOCTYPE ...>), in which entities may be defined" in said(
        config(registered)
    )


def test_folders_that_are_not_there(folder, registered):
    Path(folder / "ImageSets").rename(folder / "Sets")
    assert "VOC2007/ImageSets/Main: no such folder of Pascal VOC's layout" in said(config(registered))
    Path(folder).rename(folder.parent / "elsewhere")
    assert "VOC2007 is not there; DETECTRON2_DATASETS is" in said(config(registered))

"""Checks of COCO annotations: each fault is found and named; what comes of it is what Detectron2 really does."""

import copy
import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools import mask as mask_utils

from loco_det.data.checks.coco import check_coco
from loco_det.data.checks.findings import EXAMPLES
from loco_det.data.checks.kinds import KINDS

NAN = float("nan")
HEIGHT, WIDTH = 20, 30


def rle(height, width):
    code = mask_utils.encode(np.asfortranarray(np.ones((height, width), np.uint8)))
    return {"size": [height, width], "counts": code["counts"].decode()}


def good():
    """Two images, two classes, an object each of 48 square pixels."""
    square = {"bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0, "segmentation": [[2, 2, 10, 2, 10, 8, 2, 8]]}
    names = ("a.png", "b.png")
    return {
        "images": [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names, 1)],
        "categories": [{"id": 1, "name": "dust"}, {"id": 2, "name": "cell"}],
        "annotations": [{"id": i, "image_id": i, "category_id": i, **copy.deepcopy(square)} for i in (1, 2)],
    }


@pytest.fixture
def check(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / name)

    def check(content, **options):
        path = tmp_path / "some.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return check_coco(str(path), str(folder), **options)[0]

    check.folder, check.path = folder, tmp_path / "some.json"
    return check


def first(**fields):
    """The good content with other values in its first annotation."""
    content = good()
    content["annotations"][0].update(fields)
    return content


def test_nothing_to_find_and_counts_per_class(check):
    content = good()
    content["annotations"] += [
        {**content["annotations"][0], "id": 3, "bbox": [0, 0, 30, 20], "area": 480, "segmentation": rle(HEIGHT, WIDTH)},
        {**content["annotations"][0], "id": 4, "area": 96**2, "iscrowd": 1},
    ]
    report = check(content)
    assert set(report.findings) == {"run_length", "crowd", "area"} and report.has_rle
    assert (report.images, report.annotations, report.classes) == (2, 4, {1: "dust", 2: "cell"})
    assert report.table[1] == {"images": 1, "instances": 2, "small": 2, "medium": 0, "large": 0}
    assert report.table[2] == {"images": 1, "instances": 1, "small": 1, "medium": 0, "large": 0}
    assert check(good()).findings == {}
    assert "    1  dust           1          1          1          0          0" in check(good()).lines()


ANNOTATIONS = {  # kinds: values of an annotation that lead to just these
    ("box_not_finite",): {"bbox": [NAN, 2, 8, 6]},
    ("box_negative",): {"bbox": [10, 2, -8, 6]},
    ("box_flat",): {"bbox": [2, 2, 8, 0]},
    ("box_outside",): {"bbox": [31, 2, 8, 6]},
    ("box_cut", "box_of_other"): {"bbox": [25, 2, 8, 6]},
    ("box_of_other",): {"bbox": [24.5, 2, 6, 6]},  # out of the image by half a pixel: rounding
    ("mask_missing",): {"segmentation": []},
    ("polygon_odd", "mask_dropped"): {"segmentation": [[2, 2, 10, 2, 10, 8, 2]]},
    ("polygon_short", "mask_stops_evaluation", "mask_dropped"): {"segmentation": [[2, 2, 10, 2]]},
    ("polygon_short",): {"segmentation": [[2, 2, 10, 2, 10, 8, 2, 8], [2, 2, 10, 2]]},
    ("polygon_not_finite",): {"segmentation": [[2, 2, 10, 2, 10, NAN]]},
    ("polygon_cut",): {"segmentation": [[2, 2, 10, 2, 10, 8, 2, 8], [-5, 2, -5, 2, -5, 2]]},
    ("rle_size",): {"segmentation": rle(WIDTH, HEIGHT)},
    ("rle_broken",): {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [3, 5]}},
    ("area",): {"area": 480},
    ("image_id_unknown",): {"image_id": 3},
    ("category_unknown",): {"category_id": 3},
    ("annotation_id_0",): {"id": 0},
    ("annotation_id_twice",): {"id": 2},
    ("ignore",): {"ignore": 1},
    ("wrong_type",): {"bbox": [1, "2", 3, 4]},
    ("wrong_type", "wrong_type "): {"segmentation": [[1, 2, 3, 4, "x", 6]]},
}
NOTES = {"no_annotations", "category_empty", "run_length"}  # follow from some of them


@pytest.mark.parametrize(("kinds", "fields"), ANNOTATIONS.items(), ids=lambda x: ",".join(x))
def test_annotations(check, kinds, fields):
    report = check(first(**fields))
    assert set(report.findings) - NOTES == {k.strip() for k in kinds}
    for kind in kinds:
        assert any(text in report.sentence(kind.strip()) for text in ("annotation", "annotations: bbox"))


ENTRIES = {
    "image_id_twice": lambda c: c["images"][0].update(id=2),
    "file_name_twice": lambda c: c["images"][0].update(file_name="b.png"),
    "image_missing": lambda c: c["images"][0].update(file_name="c/d.png"),
    "image_size": lambda c: c["images"][0].update(height=21),
    "category_id_twice": lambda c: c["categories"][0].update(id=2),
    "category_name_twice": lambda c: c["categories"][0].update(name="cell"),
    "category_gaps": lambda c: c["categories"].append({"id": 9, "name": "x"}),
    "category_empty": lambda c: c["categories"].append({"id": 3, "name": "x"}),
    "no_annotations": lambda c: c["annotations"].pop(),
    "only_crowd": lambda c: c["annotations"][0].update(iscrowd=1),
    "empty": lambda c: c["annotations"].clear(),
    "empty ": lambda c: c["images"].clear(),
    "field_missing": lambda c: c["annotations"][0].pop("iscrowd"),
    "wrong_type": lambda c: c["annotations"].append(7),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENTRIES)
def test_entries(check, kind):
    content = good()
    ENTRIES[kind](content)
    assert kind.strip() in check(content).findings


@pytest.mark.parametrize("content", ['{"images": [', "[]", '{"images": []}', "\udcff"])
def test_no_coco_file(check, content):
    check.path.write_bytes(content.encode(errors="surrogateescape"))
    assert list(check_coco(str(check.path), str(check.folder))[0].findings) == ["not_coco"]


def test_all_is_found_at_once_and_examples_are_few(check):
    content = good()
    content["annotations"] += [{**content["annotations"][0], "id": i, "bbox": [1, 1, 0, 5]} for i in range(3, 23)]
    content["annotations"] += [{**content["annotations"][0], "id": 23, "category_id": 8}]
    report = check(content, full=False)
    assert report.findings["box_flat"].count == len(report.findings["box_flat"].examples) == 20
    assert set(report.findings) == {"box_flat", "category_unknown"}
    lines = list(report.lines())
    assert "    ... and 15 more (--json-report lists them)" in lines
    assert sum("bbox [1, 1, 0, 5]" in line for line in lines) == EXAMPLES
    found = {f["kind"]: f for f in json.loads(json.dumps(report.to_dict()))["findings"]}
    assert found["box_flat"]["count"] == len(found["box_flat"]["examples"]) == 20
    assert found["box_flat"]["severity"] == "warning"


def test_only_some_images(check):
    content = good()
    content["annotations"][0]["bbox"] = [1, 1, 0, 5]
    report = check(content, only={2})
    assert report.images == report.annotations == 1 and "box_flat" not in report.findings


def test_images_that_are_cut_short_turned_or_no_images(check):
    """The quick check opens none; a header is enough for the size; only decoding finds what is cut short."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 255, (WIDTH, HEIGHT, 3), np.uint8)
    Image.fromarray(noise).save(check.folder / "a.jpg", exif=exif)
    whole = (check.folder / "a.jpg").read_bytes()
    content = good()
    content["images"][0]["file_name"] = "a.jpg"
    assert set(check(content).findings) == {"exif"}  # stored as 20x30, turned it is the 30x20 of the annotations
    (check.folder / "a.jpg").write_bytes(whole[:-400])
    assert set(check(content).findings) == {"exif"}
    assert set(check(content, decode=True).findings) == {"exif", "image_truncated"}
    (check.folder / "a.jpg").write_bytes(b"no image")
    assert set(check(content).findings) == {"image_unreadable"} and check(content, full=False).findings == {}


def test_not_there(check, tmp_path):
    check(good())
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        check_coco(str(tmp_path / "x.json"), str(check.folder))
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        check_coco(str(check.path), str(tmp_path / "x"))


def through_detectron2(check, content):
    """Instances of the first image, as they arrive at the model."""
    check(content)
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (40,), "none"  # twice the size
    record = load_coco_json(str(check.path), str(check.folder), None)[0]
    return DatasetMapper(cfg, is_train=True)(record)["instances"]


@pytest.mark.parametrize(
    "fields",
    [
        {"bbox": [NAN, 2, 8, 6]}, {"bbox": [2, 2, 8, 0]}, {"bbox": [31, 2, 8, 6]},
        {"segmentation": [[2, 2, 10, 2]]}, {"segmentation": [[2, 2, 10, 2, 10, 8, 2]]}, {"image_id": 3},
    ],
)  # fmt: skip
def test_detectron2_drops_what_the_report_says_it_drops(check, fields):
    assert len(through_detectron2(check, good())) == 1
    assert len(through_detectron2(check, first(**fields))) == 0


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("rle_size", {"segmentation": rle(WIDTH, HEIGHT)}), ("ignore", {"ignore": 1}), ("annotation_id_twice", {"id": 2})],
)
def test_detectron2_stops_where_the_report_says_so(check, kind, fields):
    assert KINDS[kind].severity == "error" and "AssertionError" in KINDS[kind].outcome
    with pytest.raises(AssertionError):
        through_detectron2(check, first(**fields))


def test_what_detectron2_makes_of_other_boxes_and_masks(check):
    cut = through_detectron2(check, first(bbox=[25, 2, 8, 6])).gt_boxes.tensor[0]
    assert cut.tolist() == [50, 4, 60, 16]
    mirrored = through_detectron2(check, first(bbox=[10, 2, -8, 6])).gt_boxes.tensor[0]
    assert mirrored.tolist() == [4, 4, 20, 16]
    assert through_detectron2(check, good()).has("gt_masks")
    assert not through_detectron2(check, first(segmentation=[])).has("gt_masks")
    assert mask_utils.iou([rle(WIDTH, HEIGHT)], [rle(HEIGHT, WIDTH)], [0]) == -1
    with pytest.raises(TypeError):
        mask_utils.frPyObjects([[2, 2, 10, 2], [2, 2, 10, 2, 10, 8]], HEIGHT, WIDTH)
    assert mask_utils.iou([[20, 2, 8, 6]], [[NAN, 2, 8, 6]], [0]) == 1  # NaN matches anything


@pytest.mark.parametrize("part", ["images", "categories", "all"])
def test_ids_as_text_have_no_findings_beside_their_own(check, part):
    """What refers to an image or a category of the wrong type is not unknown for that."""
    content = good()
    for entry in content["images"] * (part in ("images", "all")) + content["categories"] * (part == "categories"):
        entry["id"] = str(entry["id"])
    if part == "all":
        for annotation in content["annotations"]:
            annotation["image_id"] = str(annotation["image_id"])
    elif part == "images":
        content["images"][0]["id"] = 1
        content["annotations"][1]["image_id"] = "2"
    report = check(content, full=False)
    assert set(report.of("error")) == {"wrong_type"} and not report.of("warning")


def test_boxes_only(check):
    content = first(segmentation=[[1, "x"]])
    del content["annotations"][1]["segmentation"]
    assert check(content, masks=False).findings == {} and set(check(content).of("error")) >= {"mask_missing"}


def test_outside_files_are_not_opened(check):
    """Not even looked at: an unreadable one is no finding."""
    (check.folder.parent / "private.png").write_bytes(b"no image")
    content = good()
    content["images"][0]["file_name"] = "../private.png"
    assert set(check(content).findings) == {"image_outside"}
    assert set(check(content, allow_outside=True).findings) == {"image_elsewhere", "image_unreadable"}


def test_the_quick_check_finds_what_stops_training_or_evaluation(check):
    """All but the images themselves, whatever is wrong with the annotations."""
    for fields in ANNOTATIONS.values():
        found = [set(check(first(**fields), full=full).of("error")) for full in (True, False)]
        assert found[0] == found[1]


def test_names_that_are_no_unicode(check):
    """They can be printed."""
    content = good()
    content["images"][0]["file_name"] = "\udce9.png"
    "\n".join(check(content).lines()).encode()

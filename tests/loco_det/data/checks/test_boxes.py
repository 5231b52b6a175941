"""Boxes and areas that are in another unit or form, and those that only look odd."""

import numpy as np
import pytest

from loco_det.data.checks.boxes import check_areas, check_boxes
from loco_det.data.checks.findings import Report
from loco_det.data.checks.kinds import KINDS
from loco_det.data.checks.masks import check_masks
from loco_det.data.checks.objects import Objects, Shapes

HEIGHT, WIDTH = 200, 300


def polygon(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def make(count=20, seed=0):
    """Annotations anywhere in the image, with boxes, masks and areas that are right."""
    random = np.random.default_rng(seed)
    annotations = []
    for i in range(1, count + 1):
        w, h = random.uniform(5, 120, 2)
        x, y = random.uniform(0, WIDTH - w), random.uniform(0, HEIGHT - h)
        box = [float(v) for v in (x, y, w, h)]
        annotations.append({"id": i, "bbox": box, "area": box[2] * box[3], "segmentation": polygon(*box)})
    return annotations


def look(annotations, masks=True):
    """Counts of what is found, notes left out."""
    report = Report("some")
    image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    usual = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    objects = Objects.of([{**usual, **a} for a in annotations], {1: image})
    shapes = check_masks(report, objects) if masks else Shapes.unknown(len(objects))
    check_areas(report, objects, shapes, check_boxes(report, objects, shapes))
    return {kind: found.count for kind, found in report.findings.items() if KINDS[kind].severity != "info"}


def change(function, which=slice(None), **options):
    """What is found after the boxes of some annotations are changed."""
    annotations = make()
    for a in annotations[which]:
        a["bbox"] = [float(v) for v in function(*a["bbox"])]
    return look(annotations, **options)


def corners(x, y, w, h):
    return x, y, x + w, y + h


def shares(x, y, w, h):
    return x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT


@pytest.mark.parametrize("masks", [True, False])
def test_right_ones(masks):
    assert look(make(200), masks) == {} and look([], masks) == {}


def test_corners():
    """With masks each one is known, without them a file is."""
    assert change(corners) == {"box_corners": 20} and change(corners, masks=False) == {"box_corners": 20}
    assert change(corners, slice(3)) == {"box_corners": 3}


def test_boxes_at_the_image_s_corner_are_the_same_in_both_forms():
    annotations = [{"id": 1, "bbox": [0, 0, 20, 20], "area": 400, "segmentation": polygon(0, 0, 20, 20)}]
    assert look(annotations) == look(annotations, masks=False) == {}
    whole = [{"id": 1, "bbox": [0, 0, WIDTH + 3, HEIGHT], "area": 400}]
    assert look(whole, masks=False) == {"box_cut": 1, "area_wrong": 1}


def test_shares_of_the_image():
    """Boxes alone, and with their masks and areas."""
    assert change(shares)["box_normalized"] == change(shares, masks=False)["box_normalized"] == 20
    annotations = make()
    for a in annotations:
        box = shares(*a["bbox"])
        a |= {"bbox": list(box), "area": box[2] * box[3], "segmentation": polygon(*box)}
    assert look(annotations) == {"box_normalized": 20}
    pixel = {"bbox": [0, 0, 1, 1], "area": 1, "segmentation": polygon(0, 0, 1, 1)}
    assert look([*make(), {"id": 99, **pixel}]) == {}


def test_masks_in_shares_of_the_image():
    annotations = make()
    for a in annotations:
        a["segmentation"] = polygon(*shares(*a["bbox"]))
    assert look(annotations)["boxes_of_others"] == 20


def test_other_scale():
    """Half the size, as after the images were resized: most are off; a single one is worth a warning."""
    found = change(lambda *box: [v / 2 for v in box])
    assert found.keys() == {"boxes_of_others"} and found["boxes_of_others"] > 15
    assert change(lambda x, y, w, h: (y, x, h / 3, w / 3), slice(1)) == {"box_of_other": 1}


def test_boxes_that_differ_from_masks_with_reason():
    """By a pixel on each side, as those of pixel masks; larger, where part of the object is hidden; of crowds."""
    assert change(lambda x, y, w, h: (x - 1, y - 1, w + 2, h + 2)) == {}
    assert change(lambda x, y, w, h: (x - w / 10, y - h / 10, w * 1.2, h * 1.2)).keys() <= {"box_cut"}
    annotations = make()
    for a in annotations:
        a |= {"bbox": [0, 0, 20, 20], "iscrowd": 1}
    assert look(annotations) == {}


def test_masks_that_reach_out_of_the_image():
    """Annotation tools cut the box only, or the polygon only."""
    inside, outside = [250.0, 50, 50, 60], [250.0, 50, 200, 60]
    for box, mask in ((inside, outside), (outside, inside)):
        found = look([{"id": 1, "bbox": box, "area": 3000, "segmentation": polygon(*mask)}])
        assert found.keys() <= {"box_cut"}


@pytest.mark.parametrize("box", [[1e30, 0, 5, 5], [-1e9, 0, 5, 5], [0, 0, 5, 1e300], [0, 700, 5, 5]])
def test_far_boxes(box):
    found = change(lambda *_: box, slice(1))
    assert found == {"coordinates_far": 1} and "unit" in KINDS["coordinates_far"].outcome
    assert KINDS["coordinates_far"].severity == "error"


def area(value, box=(10, 10, 100, 100), masks=True, **more):
    annotation = {"id": 1, "bbox": list(box), "area": value, "segmentation": polygon(*box)}
    return look([annotation | more], masks)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("value", [-10000, -0.5, float("nan"), float("inf"), 0, 0.15, 150_000, 70_000])
def test_areas_that_drop_or_move_an_object(value, masks):
    assert area(value, masks=masks) == {"area_wrong": 1}
    assert area(value, masks=masks, iscrowd=1) == {}


def test_negative_areas_of_small_objects():
    """Not in another group of sizes, but in none."""
    assert area(-100, (10, 10, 10, 10)) == area(-1e-3, (10, 10, 10, 10)) == {"area_wrong": 1}


@pytest.mark.parametrize(
    ("value", "box"),
    [(5000, (10, 10, 100, 100)), (20000, (10, 10, 100, 100)), (0, (10, 10, 10, 10)), (400, (10, 10, 10, 20))],
)
def test_areas_that_are_only_inexact(value, box):
    """Of the box and not of the mask, of overlapping polygons, or in the same group of sizes."""
    assert area(value, box) == {}


def test_thin_objects_without_masks():
    """The area of the mask that was: a small part of the box."""
    assert area(900, (10, 10, 180, 180), masks=False) == {}
    assert area(60, (10, 10, 180, 180), masks=False) == {"area_wrong": 1}

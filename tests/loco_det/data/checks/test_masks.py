"""Polygons and run-length codes: areas and boxes by hand and by pycocotools, and every coordinate that cannot be."""

import copy
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from loco_det.data.checks import masks as module
from loco_det.data.checks.findings import Report
from loco_det.data.checks.masks import check_masks
from loco_det.data.checks.objects import Objects

HEIGHT, WIDTH = 20, 30
SQUARE = [2, 2, 10, 2, 10, 8, 2, 8]
NAN, INF = float("nan"), float("inf")


def look(*masks, crowd=0):
    """Report and shapes of annotations with these segmentations."""
    image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    usual = {"image_id": 1, "bbox": [2, 2, 8, 6], "area": 48, "iscrowd": crowd}
    report = Report("some")
    objects = Objects.of([{"id": i, **usual, "segmentation": m} for i, m in enumerate(masks, 1)], {1: image})
    return report, check_masks(report, objects)


def test_areas_and_boxes(monkeypatch):
    """Over the borders of chunks; of an object with several polygons; of either direction of drawing."""
    monkeypatch.setattr(module, "CHUNK", 2)
    triangle = [0, 0, 0, 4, 6, 0]
    report, shapes = look([SQUARE], [triangle, SQUARE], [triangle[::-1]], [[20.5, 1, 22, 1, 22, 2.5, 20.5, 2.5]])
    assert report.findings == {}
    assert shapes.area.tolist() == [48, 60, 12, 2.25]
    assert shapes.box[:2].tolist() == [[2, 2, 10, 8], [0, 0, 10, 8]] and shapes.box[3].tolist() == [20.5, 1, 22, 2.5]


@pytest.mark.parametrize(
    ("mask", "kinds"),
    [
        ([[[2, 2], [10, 2], [10, 8], [2, 8]]], {"polygon_nested"}),
        ([[2, 2], [10, 2], [10, 8]], {"polygon_nested"}),
        ([[[2, 2, 10], 2, 10, 8, 2, 8]], {"polygon_nested"}),
        ([["2", "2", "10", "2", "10", "8"]], {"wrong_type"}),
        ([SQUARE, [2, None, 10, 2, 10, 8]], {"wrong_type"}),
        ([[2, 2, 10, 2, 10, {}]], {"wrong_type"}),
        ([[2, 2, 10, 2, 10, True]], set()),  # a number in Python's and in numpy's eyes, too
        ([SQUARE, [2, 2, 10, 2, 10, NAN]], {"polygon_not_finite"}),
        ([[2, 2, 10, 2, -INF, 8]], {"polygon_not_finite"}),
        ([[1, 2], [2, 2, 10, 2, 10, NAN]], {"polygon_not_finite", "polygon_short", "mask_stops_evaluation"}),
        ([[2, 2, 10, 2, 1e30, 8]], {"coordinates_far"}),
        ([[2, 2, 10, 2, 10, -1e30]], {"coordinates_far"}),
        ([[2, 2, 10, 2, 10, 10**400]], {"coordinates_far"}),
        ([SQUARE, [2, 10**400]], {"coordinates_far", "polygon_short"}),
        ([SQUARE, [2, 2, 10, 2, 10, 1e30, 5]], {"coordinates_far", "polygon_odd"}),
        ([SQUARE, [2, NAN]], {"polygon_not_finite", "polygon_short"}),
        ([[2, 2, 10, 2, 62, 8]], {"coordinates_far"}),
        ([[2, 2, 10, 2, 58, 8]], {"polygon_cut"}),
        ([[2, 2, 10, 2, 30.9, 8]], set()),
        ([SQUARE, []], {"polygon_short"}),
        ([[]], {"polygon_short", "mask_stops_evaluation", "mask_dropped"}),
        ([], {"mask_missing"}),
        (None, {"mask_missing"}),
    ],
)
def test_polygons(mask, kinds):
    """Beside a good one, which keeps its shape; what cannot be judged has none."""
    report, shapes = look(mask, [SQUARE])
    assert set(report.findings) == kinds and shapes.area[1] == 48
    if kinds and mask and kinds not in ({"polygon_cut"}, {"coordinates_far"}):
        assert np.isnan(shapes.area[0]) and np.isnan(shapes.box[0]).all()
    for kind in kinds:
        assert "annotation 1 of a.png" in report.sentence(kind)


def test_all_annotations_are_in_the_count():
    report, _ = look(*[[[2, 2, 10, 2, 10, NAN]]] * 7, *[[[SQUARE]]] * 8)
    assert report.findings["polygon_not_finite"].count == 7 and report.findings["polygon_nested"].count == 8
    assert len(report.findings["polygon_nested"].examples) == 8  # by id, for --json-report


masks = st.integers(0, 2**32 - 1).map(lambda s: np.random.default_rng(s)).map(
    lambda r: np.asfortranarray(r.random((HEIGHT, WIDTH)) < r.choice([0, 0.01, 0.5, 1]), np.uint8)
)  # fmt: skip


@given(masks)
def test_run_length_codes(mask):
    """COCO's text and lists of counts, against the pixels."""
    text = mask_utils.encode(mask)["counts"].decode()
    flat = np.concatenate([[0], mask.flatten("F"), [2]])
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    counts = np.diff(np.concatenate([[0], edges])).tolist()  # begins with a run of background, perhaps of no pixel
    size = {"size": [HEIGHT, WIDTH]}
    report, shapes = look(size | {"counts": text}, size | {"counts": counts})
    assert set(report.findings) == {"run_length"} and report.has_rle
    assert shapes.area.tolist() == [mask.sum()] * 2
    y, x = mask.nonzero()
    if len(y):
        assert shapes.box.tolist() == [[x.min(), y.min(), x.max() + 1, y.max() + 1]] * 2
    else:
        assert np.isnan(shapes.box).all()
    assert not look(size | {"counts": text}, crowd=1)[0].findings


GOOD = {"size": [HEIGHT, WIDTH], "counts": [3, 5, 592]}


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"counts": [3, 5]}, "rle_broken", "sum up to 8, the image has 600 pixels"),
        ({"counts": [3, 5, 593]}, "rle_broken", "sum up to 601"),
        ({"counts": "35"}, "rle_broken", "sum up to 8"),
        ({"counts": [3, -5, 602]}, "rle_broken", "negative"),
        ({"counts": [3.0, 5, 592]}, "rle_broken", "nor a list of whole numbers"),
        ({"counts": ["3", 5, 592]}, "rle_broken", "nor a list of whole numbers"),
        ({"counts": []}, "rle_broken", "nor a list"),
        ({"counts": ""}, "rle_broken", "nor a list"),
        ({"counts": None}, "rle_broken", "nor a list"),
        ({"counts": "é"}, "rle_broken", "nor a list"),
        ({"counts": "35h"}, "rle_broken", "nor a list"),  # more characters should follow
        ({"counts": "P" * 40 + "0"}, "rle_broken", "nor a list"),
        ({"counts": [10**30]}, "rle_broken", "sum up to|nor a list"),
        ({"size": [WIDTH, HEIGHT]}, "rle_size", r"\[30, 20\], the image \[20, 30\]"),
        ({"size": [20.0, 30.0]}, "rle_size", "20.0"),
        ({"size": "big"}, "rle_size", "big"),
    ],
)  # fmt: skip
def test_broken_codes(change, kind, words):
    report, shapes = look(copy.deepcopy(GOOD) | change)
    assert set(report.findings) == {"run_length", kind} and np.isnan(shapes.area).all()
    assert re.search(words, report.sentence(kind))
    assert set(look(GOOD)[0].findings) == {"run_length"}

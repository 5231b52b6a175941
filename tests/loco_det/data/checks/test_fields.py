"""Types of fields: which entry is wrong and what it has to be, for files as other tools write them."""

import copy

import pytest

from loco_det.data.checks.fields import whole_entries
from loco_det.data.checks.findings import Report

GOOD = {
    "images": {"id": 1, "file_name": "a.png", "height": 20, "width": 30},
    "categories": {"id": 1, "name": "cell"},
    "annotations": {"id": 5, "image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 6.5], "area": 48, "iscrowd": 0,
                    "segmentation": [[2, 2, 10, 2, 10, 8]]},
}  # fmt: skip
WHOLE = "a whole number without quotes"


@pytest.mark.parametrize(
    ("part", "field", "value", "wanted"),
    [
        ("images", "id", "000123", WHOLE),
        ("images", "id", 1.0, WHOLE),
        ("images", "id", float("nan"), WHOLE),
        ("images", "id", None, WHOLE),
        ("images", "id", 2**63, "of 64 bits"),
        ("images", "id", [1], WHOLE),
        ("images", "width", 0, "a positive whole number of pixels"),
        ("images", "height", -20, "a positive whole number of pixels"),
        ("images", "height", "20", "a positive whole number of pixels"),
        ("images", "width", 30.0, "a positive whole number of pixels"),
        ("images", "file_name", 123, "text"),
        ("categories", "id", "1", WHOLE),
        ("categories", "name", None, "text"),
        ("categories", "name", "caf\udce9", "text in valid Unicode"),
        ("annotations", "id", -(2**63) - 1, "of 64 bits"),
        ("annotations", "image_id", "1", WHOLE),
        ("annotations", "category_id", True, WHOLE),
        ("annotations", "iscrowd", None, "0 or 1"),
        ("annotations", "iscrowd", 2, "0 or 1"),
        ("annotations", "iscrowd", "0", "0 or 1"),
        ("annotations", "area", "48", "a number"),
        ("annotations", "area", None, "a number"),
        ("annotations", "area", 10**400, "a number"),
        ("annotations", "bbox", None, "four numbers"),
        ("annotations", "bbox", "2 2 8 6", "four numbers"),
        ("annotations", "bbox", [1, 2, 3], "four numbers"),
        ("annotations", "bbox", ["1", "2", "3", "4"], "four numbers"),
        ("annotations", "bbox", [1, 2, None, 4], "four numbers"),
        ("annotations", "bbox", [1, 2, 10**400, 4], "four numbers"),
        ("annotations", "bbox", [[1, 2], [3, 4], 5, 6], "four numbers"),
        ("annotations", "bbox", {"x": 1}, "four numbers"),
        ("annotations", "segmentation", [2, 2, 10, 2, 10, 8], "polygons [[x, y, x, y, ...], ...]"),
        ("annotations", "segmentation", "0d0Tb0", "polygons"),
        ("annotations", "segmentation", {"counts": "35"}, "a run-length code"),
        ("annotations", "segmentation", [{"x": 1}], "polygons"),
    ],
)
def test_wrong_types(part, field, value, wanted):
    """Among good ones, which stay."""
    entry = copy.deepcopy(GOOD[part])
    report, good = Report("some"), {**copy.deepcopy(entry), "id": 77}
    assert whole_entries(report, part, [good, entry | {field: value}]) == [good]
    (found,) = report.findings.values()
    (line,) = found.examples
    assert found.count == 1 and wanted in line and len(line) < 300
    assert line.startswith(f"{part}: {field} {value!r}"[:60])


@pytest.mark.parametrize("value", [None, 7, "text", [], float("nan")])
def test_entries_that_are_no_objects(value):
    report = Report("some")
    assert whole_entries(report, "images", [value, GOOD["images"]]) == [GOOD["images"]]
    assert "must be an object" in report.sentence("wrong_type")


def test_lacking_fields_and_those_that_may_lack():
    annotation = {k: v for k, v in GOOD["annotations"].items() if k != "segmentation"}
    report = Report("some")
    assert whole_entries(report, "annotations", [annotation, annotation | {"iscrowd": True, "area": float("nan")}])
    assert whole_entries(report, "annotations", [annotation | {"segmentation": "x"}], masks=False)
    assert whole_entries(report, "images", []) == [] and report.findings == {}
    del annotation["area"], annotation["iscrowd"]
    assert whole_entries(report, "annotations", [annotation]) == []
    assert "the entry with id 5 lacks area, iscrowd" in report.sentence("field_missing")

"""Halves of a comparison, and what is said once of a table."""

import numpy as np
import pytest
from detectron2.data import Metadata
from detectron2.structures import Instances
from PIL import Image

from loco_det.report.pictures import halves
from loco_det.report.tables import without_equal
from loco_det.report.visualize import draw_comparison
from pretrain.files.tables import Column, Table


@pytest.mark.parametrize("size", [(480, 640), (600, 200)])  # height, width: beside a narrow image the caption is wider
def test_a_comparison_is_cut_where_it_was_joined(tmp_path, size):
    image = np.random.default_rng(0).integers(0, 250, (*size, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "annotations": []}
    empty = Instances(size)
    import torch
    from detectron2.structures import Boxes

    empty.pred_boxes, empty.scores, empty.pred_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0), torch.zeros(0).long()
    both = draw_comparison(record, empty, Metadata(thing_classes=["a", "b"]))
    Image.fromarray(both).save(tmp_path / "both.png")
    left, right = halves(tmp_path / "both.png")
    height, width = np.asarray(right).shape[:2]
    assert left.height == right.height == height and left.width + 8 + right.width == both.shape[1]
    drawn = np.asarray(right)[30:, : min(width, size[1])]
    assert (drawn[:, 0] != 255).any() and (np.asarray(left)[30:, 0] != 255).any()
    assert np.abs(drawn.astype(int) - np.asarray(left)[30:, : drawn.shape[1]]).max() == 0  # nothing was found


def test_no_comparison(tmp_path):
    assert halves(tmp_path / "gone.png") is None
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    assert halves(tmp_path / "red.png") is None


def test_columns_that_are_equal_are_said_once():
    table = Table([Column("run"), Column("state"), Column("data"), Column("none")])
    table.rows = [{"run": "a", "state": "done", "data": "x"}, {"run": "b", "state": "done", "data": None}]
    found, said = without_equal(table, ("state", "data", "none"))
    assert [column.name for column in found.columns] == ["run", "data"] and said == [("state", "done")]
    found, said = without_equal(table, ("state", "data", "none"), known=True)
    assert [column.name for column in found.columns] == ["run"] and said == [("state", "done"), ("data", "x")]
    one = Table(table.columns, table.rows[:1])
    assert without_equal(one, ("state",)) == (one, [])


def test_a_white_stripe_of_the_image_is_no_gap(tmp_path):
    pixels = np.zeros((40, 208, 3), np.uint8)
    pixels[:, 100:108] = pixels[:, 20:40] = pixels[:, 128:148] = 255
    Image.fromarray(pixels).save(tmp_path / "both.png")
    left, right = halves(tmp_path / "both.png")
    assert left.size == right.size == (100, 40) and np.array_equal(left, right)

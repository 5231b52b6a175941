"""Masks that are not pasted have the pixels of those that are, and COCO's encoding of them, byte for byte."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances

from loco_det.evaluation import masks as module
from loco_det.evaluation.masks import THRESHOLD, PastedMasks, Window, margin, run_lengths, to_coco_json

KINDS = {
    "noise": lambda n, side: torch.rand(n, side, side),
    "smooth": lambda n, side: (F.avg_pool2d(torch.randn(n, 1, side + 8, side + 8), 9, 1)[:, 0] * 30).sigmoid(),
    "binary": lambda n, side: (torch.rand(n, side, side) > 0.5).float(),
    "beside the threshold": lambda n, side: 0.5 + (torch.rand(n, side, side) - 0.5) * 1e-5,
    "at the threshold": lambda n, side: torch.full((n, side, side), 0.5),
    "outside of [0, 1]": lambda n, side: torch.randn(n, side, side) * 3,
}


def boxes(random, count, height, width):
    """Tiny, huge and usual boxes, some partly outside of the image, none entirely: Detectron2 pastes none of those."""
    ends = np.array([width, height])
    start = random.uniform(-0.3, 1, (count, 2)) * ends
    found = np.hstack([start, start + random.choice([1e-3, 0.1, 1, 3], (count, 1)) * random.random((count, 2)) * ends])
    if random.random() < 0.3:
        found = np.round(found * 4) / 4
    found[random.random(count) < 0.1] = [0, 0, width, height]
    found[:, 2:] = np.maximum(found[:, 2:], np.maximum(found[:, :2] + 1e-6, 0.01))
    return torch.tensor(found, dtype=torch.float32)


def detections(masks, where, size):
    found = Instances(size)
    found.pred_boxes, found.pred_masks = Boxes(where), masks
    found.scores, found.pred_classes = torch.rand(len(where)), torch.arange(len(where))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_encodings_are_those_of_detectron2(kind):
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    for _ in range(60):
        size = tuple(random.choice([1, 2, 3, 7, 30, 64, 150], 2).tolist())
        where = boxes(random, int(random.integers(1, 6)), *size)
        small = KINDS[kind](len(where), int(random.choice([28, 28, 28, 14, 7, 1, 2, 56])))
        wanted, lazy = paste_masks_in_image(small, where, size), PastedMasks(small, where, size)
        assert lazy.tensor().dtype == torch.bool and torch.equal(lazy.tensor(), wanted)
        assert torch.equal(torch.stack(list(lazy)), wanted) and torch.equal(lazy[-1], wanted[-1])
        entries = instances_to_coco_json(detections(wanted, where, size), 7)
        got = to_coco_json(detections(lazy, where, size), 7)
        for entry, own in zip(entries, got, strict=True):
            own["score"] = entry["score"]  # random ones
        assert json.dumps(got) == json.dumps(entries)


def test_the_pixels_beside_the_threshold_need_the_second_look(monkeypatch):
    """Without it the two ways of rounding give other masks somewhere; with a margin as proven they do not."""
    torch.manual_seed(0)
    where = boxes(np.random.default_rng(0), 20, 64, 64)
    small = KINDS["beside the threshold"](20, 28)
    wanted = paste_masks_in_image(small, where, (64, 64))
    assert torch.equal(PastedMasks(small, where, (64, 64)).tensor(), wanted)
    monkeypatch.setattr(module, "margin", lambda side: 0)
    assert not torch.equal(PastedMasks(small, where, (64, 64)).tensor(), wanted)


@pytest.mark.parametrize("side", [1, 2, 7, 14, 28, 56, 112])
def test_the_margin_is_wide_enough(side):
    """Positions in float32 and sums in float64 differ from grid_sample by less than half of it: one way's share."""
    torch.manual_seed(side)
    small, points = torch.rand(1, 1, side, side), torch.rand(1, 1, 20000, 2) * 2.4 - 1.2
    found = F.grid_sample(small, points, align_corners=False)
    exact = F.grid_sample(small.double(), points.double(), align_corners=False)
    assert 0 < (found - exact).abs().max() < margin(side) / 2


def test_what_float32_does_not_hold_goes_the_usual_way():
    small, where = torch.rand(2, 28, 28).double(), torch.tensor([[1.0, 2, 20, 25], [3, 3, 9, 9]]).double()
    assert torch.equal(PastedMasks(small, where, (30, 40)).tensor(), paste_masks_in_image(small, where, (30, 40)))


def test_boxes_beside_the_image_and_no_boxes_have_no_pixels():
    where = torch.tensor([[-30.0, -30, -9, -9], [50, 60, 70, 80], [-1e30, 0, -1e20, 5], [1e20, 0, 1e30, 5]])
    lazy = PastedMasks(torch.ones(4, 28, 28), where, (30, 40))
    assert not lazy.tensor().any() and {rle["counts"] for rle in lazy.rles()} == {"`U1"}
    nothing = lazy[where[:, 0] > 1e30]
    assert len(nothing) == 0 and nothing.tensor().shape == (0, 30, 40) and nothing.rles() == list(nothing) == []
    assert to_coco_json(detections(nothing, torch.zeros(0, 4), (30, 40)), 1) == []


def test_keypoints_stay_behind_the_masks():
    size, where = (30, 40), torch.tensor([[1.0, 2, 20, 25]])
    found = []
    for masks in (PastedMasks(torch.ones(1, 28, 28), where, size), torch.zeros(1, *size, dtype=torch.bool)):
        one = detections(masks, where, size)
        one.pred_keypoints = torch.ones(1, 17, 3)
        found.append(to_coco_json(one, 1)[0])
    assert list(found[0]) == list(found[1]) and found[0]["keypoints"] == found[1]["keypoints"]


def test_indices_and_instances_select_masks():
    where = torch.tensor([[1.0, 2, 20, 25], [3, 3, 9, 9], [0, 0, 5, 5]])
    lazy = PastedMasks(torch.rand(3, 28, 28), where, (30, 40))
    found = detections(lazy, where, (30, 40)).to("cpu")
    assert torch.equal(found[found.pred_classes >= 1].pred_masks.tensor(), lazy.tensor()[1:])
    assert torch.equal(found[1:2].pred_masks[0], lazy[1])
    with pytest.raises(IndexError):
        lazy[3]


def test_run_lengths_go_on_from_column_to_column():
    columns = np.array([[False, True], [True, True], [True, False]])
    assert run_lengths(Window(1, 0, columns), (2, 5)).tolist() == [3, 4, 3]
    assert run_lengths(Window(1, 1, columns), (4, 5)).tolist() == [6, 1, 2, 2, 2, 1, 6]
    assert run_lengths(Window(0, 0, ~columns[:1]), (2, 1)).tolist() == [0, 1, 1]
    assert run_lengths(Window(0, 0, columns[1:2]), (2, 1)).tolist() == [0, 2]
    assert THRESHOLD == 0.5

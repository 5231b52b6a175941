"""Boxes and masks at once against Detectron2's one by one: equal bits."""

import copy

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from pycocotools import mask as mask_utils

from loco_det.data.annotations import instances_at_once
from loco_det.data.resize import ByteResize

HEIGHT, WIDTH = 61, 97
RESIZED = [ByteResize(HEIGHT, WIDTH, 80, 123), T.ResizeTransform(HEIGHT, WIDTH, 80, 123)]
TRANSFORMS = {
    "nothing": [T.NoOpTransform()],
    "resize": RESIZED[:1],
    "pillow": RESIZED[1:],
    "resize, flip": [RESIZED[0], T.HFlipTransform(123)],
    "flip, resize": [T.HFlipTransform(WIDTH), RESIZED[0]],
    "vertical": [RESIZED[0], T.VFlipTransform(80), T.NoOpTransform()],
}
WHOLE = {"bbox": [3, 5, 40, 29], "segmentation": [[3, 5, 43, 5, 43, 34]]}  # whole numbers, which Detectron2 cuts off
OUTSIDE = {"bbox": [-5.5, -2, 400.25, 300.5], "segmentation": [[-5.5, -2, 394.7, 0, 300, 298.5]]}


def objects(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "bbox": [round(x, 2) for x in (rng.uniform(0, 50, 4) + 1).tolist()],
            "segmentation": [
                [round(x, 2) for x in rng.uniform(0, 60, 2 * rng.integers(3, 20)).tolist()]
                for _ in range(rng.integers(1, 4))
            ],
            "category_id": int(rng.integers(80)),
        }
        for _ in range(count)
    ]


def with_mode(things, mode=BoxMode.XYWH_ABS):
    return [{"category_id": 3, "iscrowd": 0, **thing, "bbox_mode": mode} for thing in things]


def size_after(transforms):
    return (80, 123) if any(isinstance(t, T.ResizeTransform) for t in transforms) else (HEIGHT, WIDTH)


def reference(things, transforms, mask_format):
    size, things = size_after(transforms), copy.deepcopy(things)
    if mask_format is None:
        for thing in things:
            thing.pop("segmentation", None)
    found = [detection_utils.transform_instance_annotations(o, T.TransformList(transforms), size) for o in things]
    return detection_utils.annotations_to_instances(found, size, mask_format or "polygon")


def assert_equal(mine, theirs):
    assert mine.image_size == theirs.image_size and mine.get_fields().keys() == theirs.get_fields().keys()
    assert torch.equal(mine.gt_boxes.tensor, theirs.gt_boxes.tensor) and mine.gt_boxes.tensor.dtype == torch.float32
    assert torch.equal(mine.gt_classes, theirs.gt_classes)
    if not mine.has("gt_masks"):
        return
    assert type(mine.gt_masks) is type(theirs.gt_masks)
    if hasattr(mine.gt_masks, "tensor"):
        assert torch.equal(mine.gt_masks.tensor, theirs.gt_masks.tensor)
        return
    for a, b in zip(mine.gt_masks.polygons, theirs.gt_masks.polygons, strict=True):
        assert len(a) == len(b)
        for p, q in zip(a, b, strict=True):
            assert p.dtype == q.dtype == np.float64 and p.shape == q.shape and p.tobytes() == q.tobytes()
            assert p.flags.owndata and p.flags.writeable


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask", None])
@pytest.mark.parametrize("mode", [BoxMode.XYWH_ABS, BoxMode.XYXY_ABS, 1])
@pytest.mark.parametrize(
    "things",
    [
        [],
        objects(1),
        [WHOLE],
        [*objects(9), WHOLE, OUTSIDE, {**WHOLE, "segmentation": [*OUTSIDE["segmentation"], *WHOLE["segmentation"]]}],
        [{"bbox": [1, 2.5, 3, 4]}, {"bbox": [5, 6, 7, 8]}],
        [{**objects(1)[0], "segmentation": [np.array(p) for p in objects(1)[0]["segmentation"]]}],
    ],
    ids=["none", "one", "whole", "mixed", "boxes", "arrays"],
)
def test_instances_are_detectron2s_bit_for_bit(name, mask_format, mode, things):
    things = with_mode(things, mode)
    before = copy.deepcopy(things)
    transforms = TRANSFORMS[name]
    found = instances_at_once(things, T.TransformList(transforms), size_after(transforms), mask_format)
    assert found is not None
    assert_equal(found, reference(things, transforms, mask_format))
    assert repr(things) == repr(before)


RLE = mask_utils.encode(np.asfortranarray(np.ones((HEIGHT, WIDTH), np.uint8)))


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": RLE},
        {"bbox": np.array([1.0, 2, 3, 4])},
        {"bbox": (1.0, 2, 3, 4)},
        {"bbox": [np.float32(1), 2, 3, 4]},
        {"bbox": [1.0, 2, 3, 4, 5], "bbox_mode": BoxMode.XYWHA_ABS},
        {"bbox_mode": BoxMode.XYXY_ABS},
        {"segmentation": [np.float32([1, 2, 3, 4, 5, 6])]},
    ],
)
def test_what_is_no_list_of_numbers_is_left_to_detectron2(change):
    things = with_mode(objects(2))
    things[1].update(change)
    transforms = T.TransformList(TRANSFORMS["resize"])
    assert instances_at_once(things, transforms, (80, 123), "polygon") is None


@pytest.mark.parametrize("step", [T.CropTransform(0, 0, 50, 40), T.RotationTransform(HEIGHT, WIDTH, 30)])
def test_other_transforms_are_left_to_detectron2(step):
    transforms = T.TransformList([T.NoOpTransform(), step])
    assert instances_at_once(with_mode(objects(2)), transforms, (40, 50), "polygon") is None


def test_an_object_without_mask_among_others_is_left_to_detectron2():
    things = with_mode(objects(2))
    del things[1]["segmentation"]
    assert instances_at_once(things, T.TransformList([]), (HEIGHT, WIDTH), "polygon") is None
    assert instances_at_once(things, T.TransformList([]), (HEIGHT, WIDTH), None) is not None


@pytest.mark.parametrize("polygon", [[1.0, 2, 3, 4], [], [1.0, 2, 3, 4, 5]])
def test_broken_polygons_are_detectron2s_errors(polygon):
    things = with_mode([{**objects(1)[0], "segmentation": [polygon]}])
    errors = []
    for function in (
        lambda: reference(things, [T.NoOpTransform()], "polygon"),
        lambda: instances_at_once(things, T.TransformList([T.NoOpTransform()]), (HEIGHT, WIDTH), "polygon"),
    ):
        with pytest.raises(ValueError) as error:
            function()
        errors.append(str(error.value))
    assert errors[0] == errors[1]

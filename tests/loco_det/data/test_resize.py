"""The resize of bytes against Pillow's, which Detectron2 uses."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from loco_det.data.resize import ByteResize, Resize, to_tensor

SIZES = [(480, 640), (97, 131), (131, 40), (1, 50), (50, 1), (2, 3), (147, 152)]


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("old, new", [*itertools.product(SIZES, SIZES), ((480, 640), (768, 1024))])
@pytest.mark.parametrize("make", [noise, lambda *size: noise(*size) // 128 * 255], ids=["noise", "black and white"])
def test_pixels_are_within_a_level_of_pillows(old, new, make):
    image = make(*old)
    expected = T.ResizeTransform(*old, *new).apply_image(image)
    found = ByteResize(*old, *new).apply_image(image)
    assert found.shape == expected.shape == (*new, 3) and found.dtype == np.uint8
    difference = found.astype(int) - expected
    enlarged = new[0] >= old[0] and new[1] >= old[1]
    assert np.abs(difference).max() <= enlarged and np.abs(difference).mean() < 0.4


def test_the_level_is_never_exceeded_where_old_and_new_sizes_have_a_common_divisor():
    """torch's resize of bytes is off by 2 there."""
    image = np.random.default_rng(0).integers(0, 256, (265, 345, 3), np.uint8)
    for new in ((318, 414), (371, 483), (424, 552), (477, 621), (530, 690)):
        difference = ByteResize(265, 345, *new).apply_image(image).astype(int)
        difference -= T.ResizeTransform(265, 345, *new).apply_image(image)
        assert np.abs(difference).max() == 1


def test_levels_at_the_ends_stay():
    for level in (0, 255):
        image = np.full((37, 53, 3), level, np.uint8)
        assert (ByteResize(37, 53, 80, 100).apply_image(image) == level).all()
        assert (ByteResize(37, 53, 9, 20).apply_image(image) == level).all()


@pytest.mark.parametrize(
    "image, interp",
    [
        (noise(20, 30), Image.Resampling.NEAREST),
        (noise(20, 30), Image.Resampling.BICUBIC),
        (noise(20, 30)[..., 0], None),
        (noise(20, 30, 4), None),
        (noise(20, 30, 1), None),
        (noise(20, 30) / np.float32(255), None),
    ],
)
def test_what_is_no_bilinear_resize_of_bytes_is_detectron2s(image, interp):
    expected = T.ResizeTransform(20, 30, 41, 50).apply_image(image, interp)
    assert np.array_equal(ByteResize(20, 30, 41, 50).apply_image(image, interp), expected)
    expected = T.ResizeTransform(20, 30, 41, 50, interp).apply_image(image)
    assert np.array_equal(ByteResize(20, 30, 41, 50, interp).apply_image(image), expected)


def test_a_mask_is_resized_without_levels_between():
    mask = (noise(20, 30)[..., 0] > 99).astype(np.uint8)
    found = ByteResize(20, 30, 41, 50).apply_segmentation(mask)
    assert np.array_equal(found, T.ResizeTransform(20, 30, 41, 50).apply_segmentation(mask))


@pytest.mark.parametrize("exact", [False, True])
def test_sizes_are_drawn_as_by_detectron2(exact):
    step, image = T.ResizeShortestEdge((20, 90), 120, "range"), noise(40, 60)
    np.random.seed(0)
    theirs = [step.get_transform(image) for _ in range(20)]
    np.random.seed(0)
    ours = [Resize(step, exact).get_transform(image) for _ in range(20)]
    assert [(t.new_h, t.new_w) for t in ours] == [(t.new_h, t.new_w) for t in theirs]
    assert {type(t) for t in ours} == {T.ResizeTransform if exact else ByteResize}


def test_an_image_of_any_layout_becomes_a_tensor():
    image = noise(30, 41)
    readonly = image.copy()
    readonly.flags.writeable = False
    turned = image.transpose(1, 0, 2)
    views = [
        image,
        image[:, ::-1],
        image[::-1],
        image[::-1, ::-1],
        image[..., ::-1],
        image[3:20, 5:9],
        turned,
        readonly,
    ]
    views += [image[2:20, 5:9][:, ::-1], image[:, :1], image[:1, ::-1], image[..., :1], image / 255, image[:, ::-1, :1]]
    for view in views:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = to_tensor(view)
        assert found.is_contiguous() and torch.equal(found, torch.from_numpy(view.transpose(2, 0, 1).copy()))

"""Each operation against Pillow or torchvision; the distributions against torchvision's transforms."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pretrain.augment import SimCLRView, _gray, _shift_hue, save_views
from pretrain.config import get_cfg


@pytest.fixture(scope="module")
def photograph():
    """A smooth colourful image, (96, 128, 3)."""
    y, x = np.mgrid[0:96, 0:128] / 32
    channels = [np.sin(x * 2 + y), np.cos(y * 1.7 - x), np.sin(x - y * 2.3)]
    return (np.stack(channels, -1) * 110 + 128).astype(np.uint8)


def settings(**keys):
    cfg = get_cfg().INPUT
    cfg.CROP_SIZE = 32
    for key, value in keys.items():
        cfg[key] = value
    return cfg


def test_only_the_generator_decides(photograph):
    view = SimCLRView(settings())
    first, again, other = (view(photograph, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8 and first.flags.c_contiguous
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_gray_is_pillows(photograph):
    expected = np.asarray(Image.fromarray(photograph).convert("L"))[..., None]
    assert np.abs(_gray(photograph).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("turns", [-0.2, -0.01, 0.1, 0.2])
def test_hue_is_torchvisions(photograph, turns):
    expected = np.asarray(v2.functional.adjust_hue(Image.fromarray(photograph), turns)).astype(int)
    assert np.abs(_shift_hue(photograph, turns) - expected).mean() < 4  # both round hue to 8 bits, differently


def test_crops_cover_the_range_and_stay_inside():
    """A ramp image tells where a crop came from: areas and aspect ratios as torchvision draws them."""
    y, x = np.mgrid[0:200, 0:200].astype(np.uint8)
    ramp = np.dstack([y, x, y])
    only_crop = settings(JITTER_PROB=0.0, GRAYSCALE_PROB=0.0, BLUR_PROB=0.0, CROP_SIZE=64)
    view, rng = SimCLRView(only_crop), np.random.default_rng(0)
    sides = []
    for _ in range(600):
        out = view(ramp, rng).astype(float)
        # the middles of the first and last output pixel are 63/64 of the crop apart
        sides.append([np.ptp(out[..., 0].mean(1)) * 64 / 63, np.ptp(out[..., 1].mean(0)) * 64 / 63])
    height, width = np.array(sides).T
    drawn = [v2.RandomResizedCrop(64).make_params([torch.empty(3, 200, 200)]) for _ in range(600)]
    for mine, theirs in (
        (height * width / 200**2, [d["height"] * d["width"] / 200**2 for d in drawn]),
        (np.log(width / height), [np.log(d["width"] / d["height"]) for d in drawn]),
    ):
        for q in (0.1, 0.5, 0.9):
            assert np.quantile(mine, q) == pytest.approx(np.quantile(theirs, q), abs=0.06)


def test_colour_statistics_are_torchvisions(photograph):
    """Mean and spread of the channels over many views, with the whole image as the crop."""
    reference = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], p=0.5),
        ]
    )
    torch.manual_seed(0)
    image = Image.fromarray(photograph).resize((32, 32), Image.Resampling.BOX)
    view, rng = SimCLRView(settings(CROP_AREA=[1.0, 1.0], CROP_SIZE=32)), np.random.default_rng(0)
    square = np.asarray(image)
    mine = np.stack([view(square, rng) for _ in range(800)]).astype(float)
    theirs = np.stack([np.asarray(reference(image)) for _ in range(800)]).astype(float)

    def statistics(views):
        means = views.mean((1, 2))
        saturation = np.ptp(views, axis=-1).mean((1, 2))
        detail = np.abs(np.diff(views, axis=1)).mean((1, 2, 3))
        columns = np.column_stack([means, views.std((1, 2, 3)), saturation, detail])
        return np.concatenate([columns.mean(0), columns.std(0)])

    np.testing.assert_allclose(statistics(mine), statistics(theirs), rtol=0.12, atol=1.0)


def test_strength_and_probabilities_are_read(photograph):
    off = {"JITTER_PROB": 0.0, "GRAYSCALE_PROB": 0.0, "BLUR_PROB": 0.0, "CROP_AREA": [1.0, 1.0]}
    square = photograph[:, :96]

    def colours(**keys):
        return SimCLRView(settings(**{**off, **keys}))(square, np.random.default_rng(3))

    plain = colours()
    for key, value in (("GRAYSCALE_PROB", 1.0), ("JITTER_PROB", 1.0), ("CROP_AREA", [0.1, 0.2]), ("CROP_SIZE", 40)):
        assert not np.array_equal(colours(**{key: value}), plain), key
    same = colours(JITTER_PROB=1.0, JITTER_STRENGTH=0.0).astype(int)  # but for the rounding of hue to 8 bits
    assert np.abs(same - plain).mean() < 1
    blurred = [colours(BLUR_PROB=1.0, BLUR_SIGMA=[sigma, sigma]).astype(float) for sigma in (0.1, 2)]
    blurred = [np.abs(np.diff(image, axis=0)).mean() for image in blurred]
    assert blurred[1] < 0.97 * blurred[0]


def test_extreme_shapes():
    view = SimCLRView(settings())
    for shape in ((1, 1), (1, 300), (300, 1), (2, 2)):
        image = np.full((*shape, 3), 200, np.uint8)
        assert view(image, np.random.default_rng(0)).shape == (32, 32, 3)


def test_picture_of_views(tmp_path, photograph):
    save_views(tmp_path / "views.png", [photograph, photograph[:, :50]], SimCLRView(settings()), 0, height=64)
    sheet = np.asarray(Image.open(tmp_path / "views.png"))
    assert sheet.shape[0] == 2 * 68 and sheet.shape[1] >= 3 * 64

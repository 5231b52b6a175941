"""Each operation, and the distribution of the views, against torchvision's."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pretrain.config import get_cfg
from pretrain.data.augment import SimCLRView, _blur, _gray, save_views
from pretrain.data.device_augment import DeviceAugment

OFF = {"JITTER_PROB": 0.0, "GRAYSCALE_PROB": 0.0, "BLUR_PROB": [0.0, 0.0], "CROP_AREA": [1.0, 1.0]}
KINDS = ["brightness", "contrast", "saturation", "hue"]  # in the order of INPUT.JITTER
ADJUST = [getattr(functional, f"adjust_{kind}") for kind in KINDS]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """torchvision's small tensors are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photograph():
    """A colourful image with detail of all sizes, (192, 192, 3); of moderate contrast, so that jitter seldom clips."""
    y, x = np.mgrid[0:192, 0:192] / 64
    channels = np.stack([np.sin(x * 2 + y), np.cos(y * 1.7 - x), np.sin(x - y * 2.3)], -1) * 12 + [120, 95, 65]
    noise = np.random.default_rng(0)
    for size in (1, 2, 4, 8):
        channels += np.kron(noise.normal(0, 10, (192 // size, 192 // size, 1)), np.ones((size, size, 1)))
    return channels.clip(0, 255).astype(np.uint8)


def settings(**keys):
    cfg = get_cfg().INPUT
    cfg.CROP_SIZE = 40
    for key, value in keys.items():
        cfg[key] = value
    return cfg


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)


def difference(mine, theirs):
    """Of an (H, W, 3) array and a (3, H, W) tensor, in levels of 255."""
    return np.abs(mine.astype(float) - theirs.permute(1, 2, 0).numpy())


class Fixed:
    """A generator whose draws are known: one operation, one factor."""

    def __init__(self, kind, factor):
        self.kind, self.factor = kind, factor

    def permutation(self, _):
        return [self.kind]

    def uniform(self, low, high):
        assert low <= self.factor <= high
        return self.factor


def test_only_the_generator_decides(photograph):
    view = SimCLRView(settings())
    first, again, other = (view(photograph, np.random.default_rng(seed), 0) for seed in (1, 1, 2))
    assert first.shape == (40, 40, 3) and first.dtype == np.uint8 and first.flags.c_contiguous
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_gray_is_pillows(photograph):
    expected = np.asarray(Image.fromarray(photograph).convert("L"))[..., None]
    assert np.abs(_gray(photograph).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", range(3), ids=KINDS[:3])
@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.3, 1.8])
def test_jitter_is_torchvisions(photograph, kind, factor):
    mine = SimCLRView(settings())._jitter(photograph, Fixed(kind, factor))
    error = difference(mine, ADJUST[kind](tensor(photograph), factor))
    assert error.max() <= 2 and error.mean() <= 1  # torchvision cuts off what we round, in gray too


@pytest.mark.parametrize("turns", [-0.2, -0.01, 0.0, 0.1, 0.2])
def test_hue_is_torchvisions(photograph, turns):
    mine = SimCLRView(settings())._jitter(photograph, Fixed(3, turns))
    pillow = np.asarray(functional.adjust_hue(Image.fromarray(photograph), turns))
    assert difference(mine, ADJUST[3](tensor(photograph), turns)).mean() < 2
    assert difference(mine, tensor(pillow.copy())).mean() < 2  # Pillow has hue in 8 bits too, but cuts off


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.0])
def test_blur_is_torchvisions_with_its_whole_kernel(photograph, size, sigma):
    error = difference(
        _blur(photograph, sigma, size // 20),
        functional.gaussian_blur(tensor(photograph), [2 * (size // 20) + 1] * 2, [sigma, sigma]),
    )
    assert error.max() <= 1 and error.mean() < 0.05


def test_solarize_is_torchvisions_and_comes_last(photograph):
    only = {**OFF, "CROP_SIZE": 192, "SOLARIZE_PROB": [1.0, 0.0], "BLUR_PROB": [1.0, 1.0], "BLUR_SIGMA": [2.0, 2.0]}
    # the two views draw the same, up to solarize
    first, second = (SimCLRView(settings(**only))(photograph, np.random.default_rng(0), which) for which in (0, 1))
    assert difference(first, functional.solarize(tensor(second), 128)).max() == 0
    assert (second >= 128).mean() > 0.05


def test_a_crop_is_resized_as_by_torchvision(photograph):
    """A square image has no larger crop of an aspect but 1 than itself."""
    for size in (50, 192, 250):
        view = SimCLRView(settings(**OFF, CROP_SIZE=size), colour=False)
        mine = view._crop(photograph, np.random.default_rng(0))
        assert difference(mine, functional.resize(tensor(photograph), [size, size], antialias=True)).max() == 0


def test_crops_cover_the_range_and_stay_inside():
    """A ramp image tells where a crop came from: areas, aspect ratios, places and flips as torchvision draws them."""
    y, x = np.mgrid[0:200, 0:200].astype(np.uint8)
    ramp = np.dstack([y, x, y])
    reference = v2.Compose([v2.RandomResizedCrop(64, antialias=True), v2.RandomHorizontalFlip()])
    view, rng = SimCLRView(settings(CROP_SIZE=64), colour=False), np.random.default_rng(0)
    torch.manual_seed(0)

    def crops(views):
        rows, columns = views[..., 0].mean(2), views[..., 1].mean(1)
        # the middles of the first and last output pixel are 63/64 of the crop apart
        height, width = (np.ptp(line, axis=1) * 64 / 63 for line in (rows, columns))
        flipped = columns[:, 0] > columns[:, -1]
        return [height * width, np.log(width / height), rows.mean(1), columns.mean(1), flipped]

    mine = crops(np.stack([view(ramp, rng, 0) for _ in range(800)]).astype(float))
    theirs = crops(np.stack([reference(tensor(ramp)).permute(1, 2, 0).numpy() for _ in range(800)]).astype(float))
    for a, b in zip(mine, theirs, strict=True):
        assert ks_2samp(a, b).pvalue > 1e-4


VIEWS = 500
GRAY = np.float32([0.299, 0.587, 0.114])
WHOLE, CROPPED = [1.0, 1.0], [0.08, 1.0]  # INPUT.CROP_AREA: with and without the variance of the crops


def statistics(views):
    """(N, S, S, 3) levels to the numbers of each view whose distributions are compared, (N, 33)."""
    planes = np.ascontiguousarray(np.moveaxis(np.asarray(views, dtype=np.float32), -1, 0))  # (3, N, S, S)
    red, green, blue = mean = planes.mean((2, 3))
    gray, chroma = np.tensordot(GRAY, planes, 1), planes.max(0) - planes.min(0)
    spread, no_colour = gray.std((1, 2)), chroma.max((1, 2)) < 0.5
    levels = (planes / 32).astype(np.uint8)
    steps, bends = (np.abs(np.diff(gray, n, axis=1)).mean((1, 2)) for n in (1, 2))
    return np.column_stack(
        [
            *mean,
            *[(plane == level).mean((1, 2)) for plane in levels for level in range(8)],  # histograms of the channels
            gray.mean((1, 2)),  # brightness
            spread / gray.mean((1, 2)),  # contrast, whatever the brightness
            chroma.mean((1, 2)) / (spread + 1),  # saturation, whatever brightness and contrast
            np.where(no_colour, 9, np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)),  # hue
            no_colour,
            bends / (steps + 2),  # sharpness; + 2, so that the rounding to 8 bits of faint views does not count
        ]
    )


def least_p(mine, theirs):
    """The smallest p-value of Kolmogorov-Smirnov tests of all 66 numbers: two samples of one distribution give less
    than 1e-5 in at most one of 1500 runs, which is what sampling noise may do here."""
    return min(ks_2samp(a, b, method="asymp").pvalue for a, b in zip(mine.T, theirs.T, strict=True))


@pytest.fixture(scope="module")
def reference(photograph):
    """Two independent samples of torchvision's views of the photograph."""
    image, samples = tensor(photograph), []
    torch.manual_seed(0)
    for area in (WHOLE, CROPPED):
        pipeline = v2.Compose(
            [
                v2.RandomResizedCrop(40, area, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.5),
            ]
        )
        samples.append(statistics(np.stack([pipeline(image).permute(1, 2, 0).numpy() for _ in range(2 * VIEWS)])))
    return np.split(np.hstack(samples), 2)


def on_cpu(photograph, **keys):
    rng, samples = np.random.default_rng(1), []
    for area in (WHOLE, CROPPED):
        view = SimCLRView(settings(**{"CROP_AREA": area, **keys}))
        samples.append(statistics(np.stack([view(photograph, rng, i % 2) for i in range(VIEWS)])))
    return np.hstack(samples)


def on_device(photograph, **keys):
    pytest.importorskip("kornia")
    torch.manual_seed(1)
    rng, samples = np.random.default_rng(1), []
    for area in (WHOLE, CROPPED):
        cfg = settings(**{"CROP_AREA": area, **keys})
        view = SimCLRView(cfg, colour=False)
        views = torch.from_numpy(np.stack([view(photograph, rng, 0) for _ in range(VIEWS)])).permute(0, 3, 1, 2)
        samples.append(statistics(DeviceAugment(cfg)(views).permute(0, 2, 3, 1)))
    return np.hstack(samples)


@pytest.mark.parametrize("sample", [on_cpu, on_device])
def test_distributions_are_torchvisions(photograph, reference, sample):
    assert least_p(*reference) > 1e-5
    mine = sample(photograph)
    assert least_p(mine, reference[0]) > 1e-5 and least_p(mine, reference[1]) > 1e-5


@pytest.mark.parametrize("sample", [on_cpu, on_device])
@pytest.mark.parametrize(
    "key, value",
    [
        ("JITTER", [0.2, 0.8, 0.8, 0.2]),
        ("JITTER", [0.8, 0.1, 0.8, 0.2]),
        ("JITTER", [0.8, 0.8, 0.1, 0.2]),
        ("JITTER", [0.8, 0.8, 0.8, 0.05]),
        ("JITTER_PROB", 0.5),
        ("GRAYSCALE_PROB", 0.4),
        ("BLUR_PROB", [0.1, 0.1]),
        ("BLUR_SIGMA", [0.1, 0.8]),
        ("CROP_AREA", [0.3, 1.0]),
        ("SOLARIZE_PROB", [0.0, 1.0]),
    ],
)
def test_the_comparison_sees_another_distribution(photograph, reference, sample, key, value):
    """The same comparison fails, with both samples of torchvision, when a setting is not SimCLR's."""
    other = sample(photograph, **{key: value})
    assert max(least_p(other, reference[0]), least_p(other, reference[1])) < 1e-5


def test_probabilities_of_the_two_views_are_their_own(photograph):
    def view(which, **keys):
        return SimCLRView(settings(**{**OFF, **keys}))(photograph, np.random.default_rng(3), which)

    plain = view(0)
    for key in ("BLUR_PROB", "SOLARIZE_PROB"):
        assert np.array_equal(view(0, **{key: [0.0, 1.0]}), plain)
        assert not np.array_equal(view(1, **{key: [0.0, 1.0]}), plain)
        assert np.array_equal(view(1, **{key: [1.0, 0.0]}), plain)


def test_extreme_shapes():
    view = SimCLRView(settings(CROP_SIZE=32))
    for shape in ((1, 1), (1, 300), (300, 1), (2, 2)):
        image = np.full((*shape, 3), 200, np.uint8)
        assert view(image, np.random.default_rng(0), 1).shape == (32, 32, 3)


def test_picture_of_views(tmp_path, photograph):
    view = SimCLRView(settings(**{**OFF, "SOLARIZE_PROB": [0.0, 1.0]}))
    white = np.full((64, 64, 3), 255, np.uint8)
    save_views(tmp_path / "views.png", [photograph, photograph[:, :50], white], view, 0, height=64)
    sheet = np.asarray(Image.open(tmp_path / "views.png"))
    assert sheet.shape[0] == 3 * 68 and sheet.shape[1] >= 3 * 64
    assert (sheet[170, [34, 102, 170], 0] == [255, 255, 0]).all()  # the image, its first view, its second


# What runs on the device


@pytest.mark.parametrize("kind", range(4), ids=KINDS)
def test_kornias_jitter_means_what_torchvisions_does(photograph, kind):
    pytest.importorskip("kornia")
    factors = [-0.2, -0.05, 0.0, 0.2] if kind == 3 else [0.2, 0.9, 1.0, 1.8]
    image = tensor(photograph) / 255
    mine = DeviceAugment(settings()).jitter[kind](image.expand(4, -1, -1, -1), torch.tensor(factors))
    theirs = torch.stack([ADJUST[kind](image, factor) for factor in factors])
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)  # the weights of gray differ in the fourth digit


def device_augment(views, **keys):
    return DeviceAugment(settings(**{**OFF, **keys}))(views)


def test_kornias_other_operations_are_torchvisions(photograph):
    pytest.importorskip("kornia")
    views = tensor(photograph).expand(4, -1, -1, -1)  # two first views, two second ones
    gray = device_augment(views, GRAYSCALE_PROB=1.0)
    torch.testing.assert_close(gray[1], functional.rgb_to_grayscale(views[1] / 1.0, 3), rtol=0, atol=0.1)
    keys = {"BLUR_PROB": [0.0, 1.0], "BLUR_SIGMA": [1.3, 1.3], "CROP_SIZE": 224}
    blurred = device_augment(views, **keys)
    expected = functional.gaussian_blur(views[2:] / 1.0, [23, 23], [1.3, 1.3])
    torch.testing.assert_close(blurred[2:], expected, rtol=0, atol=0.01)
    torch.testing.assert_close(blurred[:2], views[:2] / 1.0)
    solarized = device_augment(views, SOLARIZE_PROB=[1.0, 0.0])
    assert torch.equal(solarized[:2].round().byte(), functional.solarize(views[:2], 128))
    torch.testing.assert_close(solarized[2:], views[2:] / 1.0)


def test_every_view_has_its_own_order_and_factors():
    """Operations that write down their number instead: all 24 orders, in as many views as INPUT.JITTER_PROB says."""
    pytest.importorskip("kornia")
    augment = DeviceAugment(settings(**{**OFF, "JITTER_PROB": 0.8}))
    drawn = [[] for _ in range(4)]

    def operation(kind):
        def write_down(views, factors):
            drawn[kind] += factors.tolist()
            return views * 5 + kind + 1

        return write_down

    augment.jitter = [operation(kind) for kind in range(4)]
    torch.manual_seed(0)
    written = augment(torch.zeros(2000, 3, 1, 1, dtype=torch.uint8))[:, 0, 0, 0] / 255
    orders = {tuple(int(n) // 5**i % 5 for i in range(4)) for n in written.round().tolist()}
    assert len(orders) == 25 and all(sorted(order) in ([1, 2, 3, 4], [0] * 4) for order in orders)
    assert (written == 0).float().mean().item() == pytest.approx(0.2, abs=0.04)
    for kind, (low, high) in enumerate([(0.2, 1.8)] * 3 + [(-0.2, 0.2)]):
        factors = np.array(drawn[kind])
        assert len(set(factors)) > 1500 and factors.min() >= low and factors.max() <= high
        assert ks_2samp(factors, np.linspace(low, high, 1000)).pvalue > 1e-4


def test_on_device_keeps_the_format_and_follows_the_seed(photograph):
    pytest.importorskip("kornia")
    views = torch.from_numpy(np.stack([photograph] * 8)).permute(0, 3, 1, 2)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(DeviceAugment(settings())(views))
    first, again, other = results
    assert first.dtype == torch.float32 and first.is_contiguous(memory_format=torch.channels_last)
    assert first.min() >= 0 and first.max() <= 255.001 and not first.requires_grad
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.cdist(first.flatten(1), first.flatten(1)).fill_diagonal_(1).min() > 0


def test_without_kornia_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ValueError, match="INPUT.ON_DEVICE True needs kornia: pip install"):
        DeviceAugment(settings())

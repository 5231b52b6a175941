"""The stream of batches: which images, in which order, and what happens to files that are no images."""

import io
import itertools
import logging
import re

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pretrain.config import get_cfg
from pretrain.data.loader import StreamSampler, TwoViews, build_loader
from pretrain.files.image_folders import list_images
from pretrain.files.images import read_image


@pytest.fixture
def folder(tmp_path):
    """Eight small photographs-to-be in two sub-folders."""
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def config(folder, **keys):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = str(folder)
    cfg.INPUT.CROP_SIZE = 16
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = keys.get("workers", 0)
    return cfg


def batches(folder, count, start=0, rank=0, world=1, **keys):
    loader = build_loader(config(folder, **keys), list_images(str(folder)), start, rank, world)
    return [views for views, _ in itertools.islice(iter(loader), count)]


def test_shape_and_order_of_views(folder):
    (views,) = batches(folder, 1)
    assert views.shape == (8, 3, 16, 16) and views.dtype == torch.uint8
    assert views.is_contiguous(memory_format=torch.channels_last)


def test_the_same_whatever_the_workers_and_after_a_resume(folder):
    whole = batches(folder, 5)
    for a, b in zip(whole, batches(folder, 5, workers=2), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole[3:], batches(folder, 2, start=3), strict=True):
        assert torch.equal(a, b)


def test_the_two_views_are_told_which_they_are(folder):
    cfg = config(folder)
    cfg.INPUT.SOLARIZE_PROB, cfg.INPUT.JITTER_PROB = [0.0, 1.0], 0.0
    first, second = next(iter(build_loader(cfg, list_images(str(folder)), 0)))[0].chunk(2)
    assert first.max() > 128 and second.max() < 128


def test_for_the_device_the_loader_only_crops_and_flips(tmp_path):
    for i in range(4):
        Image.new("RGB", (30, 40), (200, 100, 50)).save(tmp_path / f"{i}.png")
    cfg = config(tmp_path)
    views, _ = next(iter(build_loader(cfg, list_images(str(tmp_path)), 0)))
    assert len(views.flatten(2).unique(dim=0)) > 4  # colours of all kinds
    cfg.INPUT.ON_DEVICE = True
    views, _ = next(iter(build_loader(cfg, list_images(str(tmp_path)), 0)))
    assert views.shape == (8, 3, 16, 16) and views.dtype == torch.uint8
    assert (views == torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1)).all()


def test_two_processes_see_the_batches_of_one(folder):
    for whole, *halves in zip(batches(folder, 3), *(batches(folder, 3, rank=r, world=2) for r in (0, 1)), strict=True):
        first, second = zip(*(half.chunk(2) for half in halves), strict=True)
        assert torch.equal(whole, torch.cat([*first, *second]))


def test_views_of_two_epochs_differ(folder):
    epoch0, epoch1 = (torch.cat(batches(folder, 2, start=s)).flatten(1).float() for s in (0, 2))
    assert torch.cdist(epoch0, epoch1).min() > 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(0, 9))
def test_no_image_comes_twice_in_an_epoch(num_images, local, world, start):
    batch = local * world
    if num_images < batch:
        return
    streams = [iter(StreamSampler(num_images, batch, 0, 0, rank, world)) for rank in range(world)]
    steps = num_images // batch  # in an epoch; what is left of it is dropped
    keys = [key for _ in range(3 * steps + start) for stream in streams for key in itertools.islice(stream, local)]
    assert [p for p, _ in keys] == list(range(len(keys)))
    for epoch in range(3):
        indices = [i for _, i in keys[epoch * steps * batch : (epoch + 1) * steps * batch]]
        assert len(set(indices)) == len(indices) and set(indices) <= set(range(num_images))
    resumed = StreamSampler(num_images, batch, 0, start, 0, 1)
    assert list(itertools.islice(resumed, batch)) == keys[start * batch : (start + 1) * batch]


def test_orders_of_epochs_and_seeds_differ():
    orders = set()
    for seed in range(3):
        stream = iter(StreamSampler(20, 20, seed, 0))
        orders.update(tuple(i for _, i in itertools.islice(stream, 20)) for _ in range(3))
    assert len(orders) == 9


def test_sixteen_bits_are_scaled_and_unknown_ranges_refused(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    image = read_image(tmp_path / "ramp.png")
    assert image.shape == (32, 32, 3) and np.array_equal(image[..., 0], ramp >> 8)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "ramp.tiff")
    with pytest.raises(ValueError, match="unknown range"):
        read_image(tmp_path / "ramp.tiff")


@pytest.fixture
def decoded_by_opencv(monkeypatch):
    """The list that every call of cv2.imdecode adds to."""
    calls, imdecode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: calls.append(1) or imdecode(*arguments))
    return calls


def smooth(mode="RGB", size=(61, 43)):
    """An image that JPEG keeps nearly as it is."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]] * 4
    return Image.fromarray(np.stack([x, y, 255 - x], -1).clip(0, 255).astype(np.uint8)).convert(mode)


ORIENTATION = Image.Exif()
ORIENTATION[0x0112] = 6  # to be shown turned by 90 degrees


@pytest.mark.parametrize(
    "mode, options, by_opencv",
    [
        ("RGB", {"quality": 92}, True),
        ("RGB", {"quality": 75, "progressive": True}, True),
        ("RGB", {"quality": 95, "subsampling": 0}, True),
        ("RGB", {"keep_rgb": True}, True),
        ("RGB", {"exif": ORIENTATION}, True),
        ("L", {"quality": 90}, True),
        ("CMYK", {"quality": 90}, False),
    ],
)
def test_jpeg_files_are_decoded_as_by_pillow(tmp_path, decoded_by_opencv, mode, options, by_opencv):
    smooth(mode).save(tmp_path / "image.jpg", **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "image.jpg")).convert("RGB")).astype(int)
    image = read_image(tmp_path / "image.jpg")
    assert image.dtype == np.uint8 and image.shape == expected.shape and image.flags.writeable
    assert np.abs(image - expected).max() <= 1  # 0 if both are built with the same JPEG library
    assert bool(decoded_by_opencv) == by_opencv


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "L", "1"])
def test_other_files_are_decoded_by_pillow(tmp_path, decoded_by_opencv, mode):
    smooth(mode).save(tmp_path / "image.png")
    expected = np.asarray(Image.open(tmp_path / "image.png").convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "image.png"), expected) and not decoded_by_opencv


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg_files_are_unreadable_wherever_they_end(tmp_path, progressive):
    """Also where a thumbnail in the header ends, which has an end-of-image marker of its own."""
    content, thumbnail = io.BytesIO(), io.BytesIO()
    smooth(size=(16, 12)).save(thumbnail, "JPEG")
    smooth().save(content, "JPEG", progressive=progressive, exif=b"Exif\0\0" + thumbnail.getvalue())
    content, end_of_image = content.getvalue(), b"\xff\xd9"
    assert content.count(end_of_image) == 2
    ends = [content.index(end_of_image) + 2, *range(1, len(content), 97), *range(len(content) - 4, len(content))]
    for end in ends:
        (tmp_path / "truncated.jpg").write_bytes(content[:end])
        with pytest.raises(ValueError, match="truncated.jpg: "):
            read_image(tmp_path / "truncated.jpg")
    (tmp_path / "trailer.jpg").write_bytes(content + b"what a camera adds")
    (tmp_path / "whole.jpg").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "trailer.jpg"), read_image(tmp_path / "whole.jpg"))


def test_a_file_that_opencv_cannot_decode_goes_to_pillow(tmp_path, monkeypatch):
    smooth().save(tmp_path / "image.jpg")
    expected = read_image(tmp_path / "image.jpg")
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: None)
    assert np.abs(read_image(tmp_path / "image.jpg").astype(int) - expected).max() <= 1


def test_a_link_to_a_folder_above_is_not_followed_forever(folder):
    (folder / "a" / "loop").symlink_to(folder)
    assert len(list_images(str(folder))) == 8


def spoil(folder):
    """Beside the good images: a truncated one, an empty one, a text file with an image's name, and a note."""
    good = (folder / "a" / "0.jpg").read_bytes()
    bad = {"truncated.jpg": good[: len(good) // 2], "empty.png": b"", "text.jpg": b"no image"}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("not an image")
    return {str(folder / name) for name in bad}


def test_unreadable_files_are_replaced_and_named(folder, caplog):
    bad = spoil(folder)
    with caplog.at_level(logging.INFO):
        images = list_images(str(folder))
    assert len(images) == 11 and "1 left out (not images)" in caplog.text and "notes.txt" in caplog.text
    for path in bad:
        with pytest.raises(ValueError, match=re.escape(path)):
            read_image(path)
    found = set()
    for views, unreadable in itertools.islice(iter(build_loader(config(folder), images, 0)), 3):
        assert views.shape == (8, 3, 16, 16)
        found.update(unreadable)
    assert found == bad


def test_nothing_readable(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match="3 images in a row are unreadable"):
        TwoViews(list_images(str(tmp_path)), None, 0)[0, 0]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_images(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no images"):
        list_images(str(tmp_path))


def test_batches_that_cannot_be(folder):
    cfg = config(folder)
    with pytest.raises(ValueError, match="cannot be divided among 3"):
        build_loader(cfg, list_images(str(folder)), 0, 0, 3)
    cfg.SOLVER.IMS_PER_BATCH = 9
    with pytest.raises(ValueError, match="8 images are fewer than SOLVER.IMS_PER_BATCH 9"):
        build_loader(cfg, list_images(str(folder)), 0)

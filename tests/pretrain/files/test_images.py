"""One reader of images: every mode and format gives pretraining, probes, detection and prediction the same pixels."""

import logging
import os
import warnings

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg as get_detection_cfg
from detectron2.data import detection_utils
from PIL import EpsImagePlugin, Image, ImageOps

from loco_det.config import add_loco_config
from loco_det.data.mapper import ImageMapper, read_for_detection
from loco_det.engine.predict import _records, find_images
from pretrain.config import get_cfg
from pretrain.data.loader import build_loader
from pretrain.files import images
from pretrain.files.image_folders import list_classes, list_images
from pretrain.files.images import UNREADABLE, image_info, read_image
from pretrain.readout.labelled import CentralCrops, central_crop, list_labelled
from pretrain.readout.streams import RandomCrops

SIDE = 32
GRAY16 = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def color(mode="RGB"):
    y, x = np.mgrid[0:SIDE, 0:SIDE] * 8
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    if mode in ("LA", "PA", "RGBA"):
        image.putalpha(Image.fromarray(x.astype(np.uint8)))
    return image.convert(mode)


FORMATS = {  # name of the file -> image, options of save
    **{f"{mode}.png": (color(mode), {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"{mode}.jpg": (color(mode), {"quality": 95}) for mode in ("L", "RGB", "CMYK")},
    **{f"{mode}.tif": (color(mode), {}) for mode in ("1", "L", "RGB", "RGBA", "CMYK")},
    **{f"{mode}.bmp": (color(mode), {}) for mode in ("1", "L", "RGB")},
    **{f"{mode}.webp": (color(mode), {"lossless": True}) for mode in ("RGB", "RGBA")},
    "RGB.ppm": (color(), {}),
    "L.pgm": (color("L"), {}),
    "sixteen.png": (Image.fromarray(GRAY16), {}),
    "sixteen.tif": (Image.fromarray(GRAY16), {}),
    "sixteen_big.tiff": (Image.fromarray(GRAY16.astype(">u2")), {}),
    "turned.jpg": (color(), {"quality": 95, "exif": TURNED}),
    "turned.png": (color(), {"exif": TURNED}),
    "turned.webp": (color(), {"lossless": True, "exif": TURNED}),
    "progressive.jpg": (color(), {"progressive": True}),
}


def reference(path):
    """By Pillow alone, as Detectron2 reads it; 16 bits by numpy."""
    if "sixteen" in path.name:
        return np.repeat((GRAY16 >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return detection_utils.read_image(str(path), "RGB")


def seen_by_pretraining(path):
    """Two views of the whole image, perhaps flipped, without other augmentation."""
    cfg = get_cfg()
    cfg.INPUT.CROP_SIZE, cfg.INPUT.CROP_AREA, cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = SIDE, [1, 1], 0, 1
    cfg.INPUT.JITTER_PROB = cfg.INPUT.GRAYSCALE_PROB = 0.0
    cfg.INPUT.BLUR_PROB = [0.0, 0.0]
    views, unreadable = next(iter(build_loader(cfg, [str(path)], 0)))
    assert not unreadable
    return [view.permute(1, 2, 0).numpy() for view in views]


@pytest.mark.parametrize("name", FORMATS)
def test_all_tools_see_the_same_pixels(tmp_path, name):
    path = tmp_path / "c" / name
    path.parent.mkdir()
    image, options = FORMATS[name]
    image.save(path, **options)
    expected = reference(path)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.shape == (SIDE, SIDE, 3) and pixels.std() > 20
    # JPEG may be decoded by two libraries that round differently
    assert np.abs(pixels.astype(int) - expected).max() <= (1 if path.suffix == ".jpg" else 0)
    info = image_info(path)
    assert info[:2] == (SIDE, SIDE) and info.orientation == (6 if "turned" in name else 1)
    for view in seen_by_pretraining(path):
        assert any(np.array_equal(view, expected) for expected in (pixels, pixels[:, ::-1]))
    _, crop = CentralCrops([str(path)], 28)[0]
    assert np.array_equal(crop, central_crop(pixels, 28))
    cfg = get_detection_cfg()
    add_loco_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = SIDE, "RGB"
    record = {"file_name": str(path), "height": SIDE, "width": SIDE, "image_id": 1}
    detected = ImageMapper(cfg, is_train=False)(record)["image"]
    assert torch.equal(detected, torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    (predicted,) = _records(find_images([tmp_path]), skipped := [])
    assert np.array_equal(predicted["pixels"], pixels) and skipped == []
    assert np.array_equal(read_for_detection(path, "BGR"), pixels[..., ::-1])
    gray = Image.fromarray(pixels).convert("L")
    assert np.array_equal(read_for_detection(path, "L")[..., 0], np.asarray(gray))


def bomb(path):
    """A PNG that says it has 20,000 x 20,000 pixels."""
    Image.new("L", (20_000, 20_000)).save(path, compress_level=9)


def damage(path, change):
    color().save(path)
    path.write_bytes(change(path.read_bytes()))


UNREADABLE_FILES = {
    "float.tif": lambda path: Image.fromarray(GRAY16.astype(np.float32)).save(path),
    "int.tif": lambda path: Image.fromarray(GRAY16.astype(np.int32)).save(path),
    "bomb.png": bomb,
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("no image"),
    "half.jpg": lambda path: damage(path, lambda data: data[: len(data) // 2]),
    "half.png": lambda path: damage(path, lambda data: data[: len(data) // 2]),
    "header.png": lambda path: damage(path, lambda data: data[:30]),
    "flipped.png": lambda path: damage(path, lambda data: data[:60] + bytes(20) + data[80:]),
    "half.webp": lambda path: damage(path, lambda data: data[: len(data) // 2]),
}


@pytest.mark.parametrize("name", UNREADABLE_FILES)
def test_what_cannot_be_read_is_named_by_all(tmp_path, name):
    path = tmp_path / name
    UNREADABLE_FILES[name](path)
    with pytest.raises(ValueError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ") and len(str(error.value).splitlines()) == 1
    if name in ("float.tif", "int.tif"):
        assert "of unknown range" in str(error.value)
        with pytest.raises(ValueError, match="of unknown range"):
            image_info(path)
    cfg = get_detection_cfg()
    with pytest.raises(ValueError, match=name), warnings.catch_warnings():
        ImageMapper(cfg, is_train=False)({"file_name": str(path), "height": SIDE, "width": SIDE})
    assert CentralCrops([str(path)], 28)[0] == (0, None)
    assert list(_records([path], skipped := [])) == [] and skipped[0][0] == path and str(path) not in skipped[0][1]


@pytest.mark.parametrize("name", ["jpg", "png", "tif", "webp"])
def test_every_orientation_is_turned_as_pillow_does_and_the_header_tells_the_size(tmp_path, name):
    image, path = color().crop((0, 0, 20, 9)), tmp_path / f"a.{name}"
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, exif=exif, **({"lossless": True} if name == "webp" else {}))
        with Image.open(path) as saved:
            expected = np.asarray(ImageOps.exif_transpose(saved).convert("RGB")).astype(int)
        pixels = read_image(path)
        assert pixels.shape == expected.shape and np.abs(pixels - expected).max() <= (2 if name == "jpg" else 0)
        assert image_info(path)[:2] == pixels.shape[1::-1], orientation


def test_16_bits_of_a_pgm_are_scaled(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 32 32 65535\n" + GRAY16.astype(">u2").tobytes())
    assert np.array_equal(read_image(tmp_path / "a.pgm")[..., 1], GRAY16 >> 8)
    assert image_info(tmp_path / "a.pgm")[:2] == (32, 32)


def test_no_image_is_given_to_another_program(tmp_path, monkeypatch):
    """Pillow has Ghostscript run an EPS file, whatever its name ends in."""
    path, marker, program = tmp_path / "a.jpg", tmp_path / "RAN", tmp_path / "gs"
    color().save(path, "EPS")
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # forget what was found before
    for read in (read_image, image_info):
        with pytest.raises(ValueError, match="a.jpg: not an image"):
            read(path)
    assert not marker.exists()


def test_large_images_are_converted_in_strips(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "STRIP", 100)
    for name in ("P.png", "RGBA.png", "CMYK.jpg", "sixteen.png", "1.tif"):
        image, options = FORMATS[name]
        image.save(tmp_path / name, **options)
        assert np.array_equal(read_image(tmp_path / name), reference(tmp_path / name)), name


def test_a_missing_file_is_an_oserror(tmp_path):
    for read in (read_image, image_info):
        with pytest.raises(FileNotFoundError, match="gone.png"):
            read(tmp_path / "gone.png")
    assert issubclass(FileNotFoundError, UNREADABLE)


@pytest.fixture
def messy(tmp_path):
    """Folders of two classes as people have them."""
    for name in ("cat/1.jpg", "cat/2.PNG", "dog/1.jpeg", "dog/deep/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        color().save(tmp_path / name, "PNG")
    for name in (".ipynb_checkpoints/1-checkpoint.jpg", "cat/._1.jpg", "__MACOSX/cat/._1.jpg", "cat/.hidden/3.jpg",
                 "dog/Thumbs.db", "dog/notes.txt", "dog/@eaDir/1.jpeg/SYNO.jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dog" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "dog" / "loop").symlink_to(tmp_path / "dog")
    return tmp_path


GOOD = ["cat/1.jpg", "cat/2.PNG", "dog/1.jpeg", "dog/deep/2.jpg"]


def test_one_list_for_all_tools_says_what_it_leaves_out(messy, caplog):
    with caplog.at_level(logging.INFO):
        found = list_images(messy)
    assert found == [str(messy / name) for name in GOOD]
    for why, name in (("hidden or of the system", ".ipynb_checkpoints"), ("hidden or of the system", "__MACOSX"),
                      ("not images", "dog/notes.txt"), ("links to nothing", "dog/gone.jpg"),
                      ("folders that are listed already, through a link", "dog/loop")):  # fmt: skip
        assert any(why in r.getMessage() and name in r.getMessage() for r in caplog.records), (why, name)
    labelled = list_labelled(messy)
    assert labelled.class_names == list_classes(messy) == ["cat", "dog"]
    assert labelled.paths == found and labelled.labels == [0, 0, 1, 1]
    assert [str(path) for path in find_images([messy])] == found


def test_a_pipe_is_not_waited_for(messy):
    os.mkfifo(messy / "cat" / "3.jpg")
    assert list_images(messy) == [str(messy / name) for name in GOOD]
    for read in (read_image, image_info):
        with pytest.raises(ValueError, match="3.jpg: not a file but a folder, a pipe or a device"):
            read(messy / "cat" / "3.jpg")


def test_a_folder_of_hidden_images_only(messy):
    with pytest.raises(FileNotFoundError, match="no images"):
        list_images(messy / "__MACOSX" / "cat")


def test_random_crops_are_of_the_same_pixels(tmp_path):
    for c in "ab":
        (tmp_path / c).mkdir()
        Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16)).save(tmp_path / c / "1.png")
    cfg = get_cfg()
    cfg.INPUT.CROP_SIZE = 16
    view, label, unreadable = RandomCrops(list_labelled(tmp_path), cfg)[0, 1]
    assert (view == 40_000 >> 8).all() and (label, unreadable) == (1, [])

"""Image files: pixels of the size that the header tells, or a ValueError that names the file."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from cases import one_line
from detectron2.config import get_cfg
from mutate import changed_bytes
from PIL import Image, ImageFile

from loco_det.data.mapper import ImageMapper
from pretrain.files.images import EXIF_ORIENTATION, UNREADABLE, image_info, read_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
HEIGHT, WIDTH = 19, 27


def encoded(mode, form, orientation=None, **options):
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    pixels[..., 0] = np.arange(WIDTH) * 9
    image = Image.fromarray(pixels, "RGBA").convert("RGB")
    if mode in ("I;16", "F"):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.float32) * 250)
    elif mode != "RGB":
        image = (Image.fromarray(pixels, "RGBA") if "A" in mode else image).convert(mode)
    if orientation:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def several(form):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


FILES = {
    "jpeg": lambda: encoded("RGB", "JPEG"),
    "jpeg turned": lambda: encoded("RGB", "JPEG", orientation=6),
    "jpeg progressive": lambda: encoded("RGB", "JPEG", progressive=True),
    "jpeg gray": lambda: encoded("L", "JPEG"),
    "jpeg cmyk": lambda: encoded("CMYK", "JPEG"),
    "png": lambda: encoded("RGB", "PNG"),
    "png turned": lambda: encoded("RGB", "PNG", orientation=8),
    "png palette": lambda: encoded("P", "PNG"),
    "png alpha": lambda: encoded("RGBA", "PNG"),
    "png gray alpha": lambda: encoded("LA", "PNG"),
    "png bits": lambda: encoded("1", "PNG"),
    "png 16 bits": lambda: encoded("I;16", "PNG"),
    "bmp": lambda: encoded("RGB", "BMP"),
    "bmp palette": lambda: encoded("P", "BMP"),
    "webp": lambda: encoded("RGB", "WEBP"),
    "webp lossless": lambda: encoded("RGBA", "WEBP", lossless=True, orientation=3),
    "webp animated": lambda: several("WEBP"),
    "tiff": lambda: encoded("RGB", "TIFF"),
    "tiff turned": lambda: encoded("RGB", "TIFF", orientation=5),
    "tiff lzw": lambda: encoded("RGB", "TIFF", compression="tiff_lzw"),
    "tiff jpeg": lambda: encoded("RGB", "TIFF", compression="jpeg"),
    "tiff deflate": lambda: encoded("L", "TIFF", compression="tiff_adobe_deflate"),
    "tiff fax": lambda: encoded("1", "TIFF", compression="group4"),
    "tiff 16 bits": lambda: encoded("I;16", "TIFF"),
    "tiff float": lambda: encoded("F", "TIFF"),
    "tiff pages": lambda: several("TIFF"),
    "ppm": lambda: encoded("RGB", "PPM"),
    "pgm": lambda: encoded("L", "PPM"),
    "pgm 16 bits": lambda: encoded("I;16", "PPM"),
    "pbm": lambda: encoded("1", "PPM"),
    "gif": lambda: several("GIF"),
    "tga": lambda: encoded("RGB", "TGA"),
    "jpeg 2000": lambda: encoded("RGB", "JPEG2000"),
    "ico": lambda: encoded("RGBA", "ICO"),
    "pcx": lambda: encoded("RGB", "PCX"),
    "mpo": lambda: several("MPO"),
    "sgi": lambda: encoded("RGB", "SGI"),
    "dds": lambda: encoded("RGBA", "DDS"),
    "icns": lambda: encoded("RGBA", "ICNS"),
    "xbm": lambda: encoded("1", "XBM"),
    "eps": lambda: encoded("RGB", "EPS"),
}
SIZES = (0, 1, 2, 255, 10_000, 13_000, 65_535, 2**31 - 1, 2**32 - 1)


def other_size(rng, data):
    """The file with another width or height in its header, and checksums that are right for it."""
    width, height = rng.choice([(rng.choice(SIZES), HEIGHT), (WIDTH, rng.choice(SIZES)), (13_000, 13_000)])
    if data.startswith(b"\x89PNG"):
        head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<II", width, height) + data[26:]
    if data[:2] in (b"P4", b"P5", b"P6"):
        return data.replace(b"%d %d" % (WIDTH, HEIGHT), b"%d %d" % (width, height), 1)
    sizes = struct.pack(">HH", HEIGHT, WIDTH), struct.pack("<H", WIDTH), struct.pack("<H", HEIGHT)
    changed = data.replace(sizes[0], struct.pack(">HH", height % 65536, width % 65536), 1)
    if changed == data:
        changed = data.replace(sizes[1], struct.pack("<H", width % 65536), 1)
    return changed


@pytest.fixture(scope="module")
def files():
    return {name: make() for name, make in FILES.items()}


def damaged(rng, files):
    name = rng.choice(list(files))
    data = other_size(rng, files[name]) if rng.random() < 0.15 else files[name]
    return data if data != files[name] and rng.random() < 0.5 else changed_bytes(rng, data)


def info_of(path):
    try:
        return image_info(path)
    except UNREADABLE as error:
        one_line(error, path)
        return None


def test_pixels_of_the_size_in_the_header_or_one_line(tmp_path, files, each_case):
    path = str(tmp_path / "image")

    def case(rng):
        with open(path, "wb") as file:
            file.write(damaged(rng, files))
        info = info_of(path)
        try:
            pixels = read_image(path)
        except UNREADABLE as error:
            one_line(error, path)
            return
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert info and (info.width, info.height) == pixels.shape[1::-1], (info, pixels.shape)

    each_case(case, 500)


def test_a_damaged_jpeg_has_the_pixels_that_pillow_reads_or_none(tmp_path, files, each_case, monkeypatch):
    # Pillow refuses what follows after the last pixel, too
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path, jpegs = str(tmp_path / "image.jpg"), [files["jpeg"], files["jpeg progressive"], files["jpeg gray"]]

    def case(rng):
        with open(path, "wb") as file:
            file.write(changed_bytes(rng, rng.choice(jpegs)))
        try:
            pixels = read_image(path)
        except UNREADABLE:
            return
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        difference = np.abs(pixels.astype(int) - expected)
        assert difference.max() <= 12, f"differs by {difference.max()} in {(difference > 12).sum()} values"

    each_case(case, 400)


def test_the_mapper_raises_what_the_reader_raises(tmp_path, files, each_case):
    path, cfg = str(tmp_path / "image"), get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 16, 32
    mapper = ImageMapper(cfg, is_train=False)

    def case(rng):
        with open(path, "wb") as file:
            file.write(damaged(rng, files))
        info = info_of(path)
        record = {"file_name": path, **({"width": info.width, "height": info.height} if info else {})}
        try:
            found = mapper(record)["image"]
        except UNREADABLE as error:
            one_line(error, path)
            return
        assert found.shape[0] == 3 and max(found.shape[1:]) <= 33

    each_case(case, 40)


def test_the_good_files_are_read(tmp_path, files):
    refused = {"eps", "tiff float"}
    for name, data in files.items():
        path = tmp_path / "image"
        path.write_bytes(data)
        if name in refused:
            with pytest.raises(ValueError):
                read_image(str(path))
        else:
            assert min(read_image(str(path)).shape[:2]) >= HEIGHT - 3 or name == "ico", name
    assert other_size(random.Random(0), files["png"]) != files["png"]

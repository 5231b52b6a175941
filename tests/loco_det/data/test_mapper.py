"""ImageMapper against Detectron2's mapper, and where that one fails."""

import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from PIL import Image
from pycocotools import mask as mask_utils

from loco_det.config import add_loco_config
from loco_det.data.mapper import ImageMapper
from loco_det.data.resize import ByteResize

WIDTH, HEIGHT = 96, 61


def settings(**keys):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TRAIN = (80, 90, 50), 100, 150
    for key, value in keys.items():
        cfg.merge_from_list([f"INPUT.{key}", value])
    return cfg


def record_of(path):
    rng = np.random.default_rng(3)
    crowd = mask_utils.encode(np.asfortranarray(rng.integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8)))
    things = [
        {"bbox": [3.5, 2, 60.25, 40], "segmentation": [rng.uniform(0, 60, 16).tolist()], "category_id": 4},
        {"bbox": [3, 2, 60, 40], "segmentation": [[3, 2, 63, 2, 63, 42]], "category_id": 1, "iscrowd": 0},
        {"bbox": [0, 0, 90.0, 60], "segmentation": crowd, "category_id": 2, "iscrowd": 1},
        {"bbox": [5, 5, 0.0, 7], "segmentation": [rng.uniform(0, 60, 8).tolist()], "category_id": 0},
    ]
    things = [{**thing, "bbox_mode": 1, "keypoints": [1, 2, 2]} for thing in things]
    return {"file_name": str(path), "width": WIDTH, "height": HEIGHT, "image_id": 7, "annotations": things}


def saved(path, mode="RGB", size=(WIDTH, HEIGHT), **options):
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    image = np.stack([x * 2, y * 3, 255 - x - y], -1) + np.random.default_rng(0).integers(-20, 20, (*y.shape, 3))
    image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    if mode == "RGBA":
        image.putalpha(Image.fromarray((x % 256).astype(np.uint8)))
    image.convert(mode).save(path, **options)
    return path


def mapped(kind, cfg, record, is_train=True, seed=0):
    mapper = kind(cfg, is_train)
    np.random.seed(seed)
    return mapper(record)


def assert_equal(mine, theirs, level=0):
    assert mine.keys() == theirs.keys() and mine["image"].is_contiguous()
    assert mine["image"].shape == theirs["image"].shape and mine["image"].dtype == theirs["image"].dtype
    assert (mine["image"].int() - theirs["image"].int()).abs().max() <= level
    if "instances" not in mine:
        return
    mine, theirs = mine["instances"], theirs["instances"]
    assert mine.get_fields().keys() == theirs.get_fields().keys() and mine.image_size == theirs.image_size
    assert torch.equal(mine.gt_boxes.tensor, theirs.gt_boxes.tensor) and len(mine) == len(theirs) > 0
    assert torch.equal(mine.gt_classes, theirs.gt_classes)
    if mine.has("gt_masks"):
        a, b = (getattr(x.gt_masks, "tensor", None) for x in (mine, theirs))
        if a is None:
            a, b = (sum(x.gt_masks, []) for x in (mine, theirs))
        assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("seed", range(4))  # sizes, flips
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"FORMAT": "RGB", "MASK_FORMAT": "bitmask"},
        {"RANDOM_FLIP": "vertical"},
        {"FORMAT": "L"},
        {"FORMAT": "YUV-BT.601"},
        {"CROP.ENABLED": True},
    ],
    ids=str,
)
def test_boxes_and_masks_are_detectron2s_and_pixels_within_a_level(tmp_path, keys, seed, exact):
    record = record_of(saved(tmp_path / "a.png"))
    before = copy.deepcopy(record)
    cfg = settings(EXACT_RESIZE=exact, **keys)
    for is_train in (True, False):
        mine, theirs = (mapped(kind, cfg, record, is_train, seed) for kind in (ImageMapper, DatasetMapper))
        assert_equal(mine, theirs, 0 if exact else 1)
        assert repr(record) == repr(before)


EXIF = Image.Exif()
EXIF[0x0112] = 6
FILES = {
    "gray.jpg": {"mode": "L"},
    "gray.png": {"mode": "L"},
    "palette.png": {"mode": "P"},
    "alpha.png": {"mode": "RGBA"},
    "cmyk.jpg": {"mode": "CMYK"},
    "turned.jpg": {"size": (HEIGHT, WIDTH), "exif": EXIF},
    "progressive.jpg": {"progressive": True},
    "444.jpg": {"subsampling": 0},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", ["RGB", "BGR"])
@pytest.mark.parametrize("exact", [True, False])
def test_every_kind_of_file_gives_detectron2s_pixels(tmp_path, name, form, exact):
    record = record_of(saved(tmp_path / name, **FILES[name]))
    cfg = settings(FORMAT=form, EXACT_RESIZE=exact)
    mine, theirs = (mapped(kind, cfg, record) for kind in (ImageMapper, DatasetMapper))
    assert_equal(mine, theirs, int(not exact))


def test_boxes_without_masks_and_images_without_objects(tmp_path):
    cfg, record = settings(EXACT_RESIZE=True), record_of(saved(tmp_path / "a.png"))
    cfg.MODEL.MASK_ON = False
    assert_equal(mapped(ImageMapper, cfg, record), mapped(DatasetMapper, cfg, record))
    record["annotations"] = []
    found = mapped(ImageMapper, settings(), record)["instances"]
    assert len(found) == 0 and found.get_fields().keys() == {"gt_boxes", "gt_classes"}
    del record["annotations"]
    assert "instances" not in mapped(ImageMapper, cfg, record)


def test_rle_masks_and_other_augmentations_go_detectron2s_way(tmp_path):
    record = record_of(saved(tmp_path / "a.png"))
    record["annotations"][2]["iscrowd"] = 0
    cfg = settings(MASK_FORMAT="bitmask", EXACT_RESIZE=True)
    assert_equal(mapped(ImageMapper, cfg, record), mapped(DatasetMapper, cfg, record))
    with pytest.raises(ValueError, match="mask_format=='polygon'"):
        mapped(ImageMapper, settings(), record)
    options = DatasetMapper.from_config(cfg, True)
    options["augmentations"] = [T.RandomRotation([30.0, 30.0]), T.RandomContrast(0.5, 1.5), T.ResizeShortestEdge(70)]
    record["annotations"].pop(2)
    found = []
    for kind in (ImageMapper, DatasetMapper):
        np.random.seed(0)
        found.append(kind(**options)(record))
    assert_equal(*found)


def test_the_key_decides_how_images_are_resized():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for exact, kind in ((False, ByteResize), (True, T.ResizeTransform)):
        step = ImageMapper(settings(EXACT_RESIZE=exact)).augmentations.augs[0]
        assert type(step.get_transform(image)) is kind


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(("width", "height"), [(1, 3000), (3000, 1)])
def test_a_very_narrow_image_keeps_a_pixel(tmp_path, width, height, is_train):
    path, cfg = str(tmp_path / "a.png"), get_cfg()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(path)
    cfg.INPUT.RANDOM_FLIP = "none"
    box = {"bbox": [0, 0, width, height], "bbox_mode": 1, "category_id": 0}
    record = {"file_name": path, "width": width, "height": height, "annotations": [box]}
    found = ImageMapper(cfg, is_train)(record)
    assert sorted(found["image"].shape[1:]) == [1, 1333] and (found["image"] == 200).all()
    if is_train:
        assert found["instances"].gt_boxes.tensor.tolist() == [[0, 0, *reversed(found["image"].shape[1:])]]


@pytest.mark.parametrize("seed", range(4))
def test_large_scale_jitter_is_vitdets(tmp_path, seed):
    """Flip, resize into a square of a random scale, crop to the square; boxes are those of the cropped masks."""
    record = record_of(saved(tmp_path / "a.png"))
    cfg = settings(EXACT_RESIZE=True, **{"LSJ.SIZE": 64, "LSJ.MIN_SCALE": 0.5, "LSJ.MAX_SCALE": 3.0})
    options = DatasetMapper.from_config(cfg, True)
    steps = [T.RandomFlip(), T.ResizeScale(0.5, 3.0, 64, 64), T.FixedSizeCrop((64, 64), pad=False)]
    np.random.seed(seed)
    theirs = DatasetMapper(**{**options, "augmentations": steps, "recompute_boxes": True})(record)
    mine = mapped(ImageMapper, cfg, record, seed=seed)
    assert_equal(mine, theirs)
    assert max(mine["image"].shape[1:]) <= 64
    plain = settings(EXACT_RESIZE=True)
    assert_equal(mapped(ImageMapper, cfg, record, is_train=False), mapped(DatasetMapper, plain, record, is_train=False))


@pytest.mark.parametrize("keys", [{"SIZE": -1}, {"MIN_SCALE": 0.0}, {"MIN_SCALE": 3.0}])
def test_scales_that_are_none_are_refused(keys):
    with pytest.raises(ValueError, match="INPUT.LSJ: SIZE .* are no sizes"):
        ImageMapper(settings(**{f"LSJ.{key}": value for key, value in ({"SIZE": 64} | keys).items()}))

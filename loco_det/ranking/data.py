"""The data that checkpoints are evaluated on: a known name, or COCO files of the user's own."""

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from pretrain.files.atomic import sha256_of
from pretrain.files.image_folders import list_images

from ..data.coco_files import read_coco
from ..data.datasets import quick_check

SMALL = 400  # pixels of the median image's shorter side, below which the recipe is that of small images
NARROW = "detection/_base_demo.yaml"
# Name -> config of the recipe; folder of its images beneath DETECTRON2_DATASETS; images to train on
KNOWN: dict[str, tuple[str, str, int]] = {
    "coco": ("detection/_base_coco.yaml", "coco/train2017", 117_266),
    "cityscapes": ("detection/_base_cityscapes.yaml", "cityscapes/leftImg8bit/train", 2975),
    "voc": ("detection/voc_finetune_fpn/_base.yaml", "VOC2007/JPEGImages", 16_551),
}


@dataclass
class Data:
    """Training and test images.

    Attributes:
        name: in tables.
        config: shipped config whose recipe suits them.
        images: folder with the training images.
        train_images: how many are trained on.
        custom: values of DATASETS.CUSTOM; of known data none.
        side: the images' shorter side that the recipe resizes to; None: the config's.
        record: what evaluation.yaml says of them.
        notes: what a reader of the figures has to know, a sentence each.
        mixed: files of the training images, if their folder holds other images, too, such as those to test on.
    """

    name: str
    config: str
    images: Path
    train_images: int
    custom: dict[str, str] = field(default_factory=dict)
    side: int | None = None
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mixed: list[Path] = field(default_factory=list)


def find_data(words: Sequence[str], root: Path, masks: bool = True) -> Data:
    """The data that a command line names.

    Args:
        words: one of ``KNOWN``; or a COCO file and its folder of images to train on, and the same to test on.
        root: the folder DETECTRON2_DATASETS.
        masks: whether masks are trained and tested.

    Raises:
        ValueError: if they are neither, or the files cannot be trained and tested on.
        OSError: if a file cannot be read.
    """
    if len(words) == 1 and words[0] in KNOWN:
        config, images, count = KNOWN[words[0]]
        return Data(words[0], config, root / images, count, record={"name": words[0]})
    if len(words) != 4:
        raise ValueError(
            f"--data takes {', '.join(KNOWN)}, or four words, TRAIN.json IMAGES TEST.json IMAGES; it has {len(words)}: "
            f"{' '.join(words)}"
        )
    parts = {"train": (words[0], words[1]), "test": (words[2], words[3])}
    classes = {part: quick_check(*files, masks=masks)[0] for part, files in parts.items()}
    if classes["train"] != classes["test"]:
        raise ValueError(f"{words[0]} and {words[2]} list different categories")
    contents = {part: read_coco(path) for part, (path, _) in parts.items()}
    name = _name(Path(words[0]).resolve().parent)
    record: dict[str, Any] = {"name": name}
    for part, (path, folder) in parts.items():
        record[part] = {"json": path, "images": folder, "sha256": sha256_of(path)}
        record[f"{part}_images"] = len(contents[part]["images"])
    record["classes"] = list(classes["train"].values())
    pairs = {"NAME": name, "TRAIN_JSON": words[0], "TRAIN_IMAGES": words[1], "TEST_JSON": words[2]}
    pairs["TEST_IMAGES"] = words[3]
    side = statistics.median(min(image["width"], image["height"]) for image in contents["train"]["images"])
    return Data(
        name,
        NARROW if side < SMALL else KNOWN["coco"][0],
        Path(words[1]),
        record["train_images"],
        pairs,
        min(max(round(side / 32) * 32, 96), 384) if side < SMALL else None,
        record,
        _missing(contents, classes["train"], words),
        _if_mixed(words[1], contents["train"]),
    )


def _name(folder):
    """What the data may be called: of annotations/train.json the folder above, without what a config would refuse."""
    name = folder.parent.name if folder.name == "annotations" else folder.name
    name = re.sub(r"\W+", "_", name) or "custom"
    return f"own_{name}" if f"{name}_train" in MetadataCatalog.list() else name


def _if_mixed(folder, content):
    """Files of the training images; none if their folder holds no others."""
    files = {os.path.normpath(os.path.join(folder, image["file_name"])) for image in content["images"]}
    return sorted(map(Path, files)) if {*map(os.path.normpath, list_images(folder))} - files else []


def _missing(contents, classes, words):
    """A sentence on the classes that the test images lack; ValueError if a part has no object at all."""
    for part, path in (("train", words[0]), ("test", words[2])):
        if not contents[part]["annotations"]:
            raise ValueError(f"{path}: there is no object to {part} on")
    found = {annotation["category_id"] for annotation in contents["test"]["annotations"]}
    missing = [name for key, name in classes.items() if key not in found]
    if not missing:
        return []
    return [f"The test images have no object of {', '.join(missing)}: AP is the mean over the other classes."]

"""The work of tools/check_dataset.py: find the data sets, check them, draw a page of samples, write a report."""

import contextlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode
from PIL import Image

from pretrain.files.atomic import write_whole
from pretrain.files.images import UNREADABLE, read_image

from ..data.checks.cityscapes import check_cityscapes
from ..data.checks.coco import check_coco
from ..data.checks.findings import Report
from ..data.checks.image_files import is_inside
from ..data.checks.voc import check_voc
from ..data.cityscapes import list_files, read_one
from ..data.coco_loader import use_own_reader
from ..data.low_shot import register_low_shot
from ..data.voc_files import read_split
from ..data.voc_loader import is_voc, load_one
from .drawing import draw_half, objects_of_record
from .visualize import pick_records

PICTURES, COLUMNS, TILE = 12, 4, 480  # images per data set, columns of the page, width of a column in pixels
Checked = tuple[Report, list[dict[str, Any]]]  # a report, and Detectron2's dataset dicts of a few images to draw


def check_all(
    names: Iterable[str] = (),
    json_file: str | None = None,
    images: str | None = None,
    cityscapes: str | None = None,
    decode: bool = False,
    masks: bool = True,
    allow_outside: bool = False,
) -> list[Checked]:
    """Check data sets in full.

    Args:
        names: registered data sets with COCO annotations (low-shot sets included), of Cityscapes or of Pascal VOC.
        json_file, images: COCO annotations and their folder of images, both or neither.
        cityscapes: a folder with leftImg8bit and gtFine; its splits train and val are checked if they exist.
        decode: read all pixels of the images.
        masks, allow_outside: of COCO annotations, as in :func:`loco_det.data.checks.coco.check_coco`.

    Returns:
        For each data set or split its report, and up to ``PICTURES`` dataset dicts spread evenly over the images with
        objects.

    Raises:
        FileNotFoundError: if a data set is missing.
        ValueError: if a name is not registered, or is none of COCO, Cityscapes and Pascal VOC.
    """
    register_low_shot()
    use_own_reader(masks)
    options = {"decode": decode, "masks": masks, "allow_outside": allow_outside}
    checked = [_check_registered(name, options) for name in names]
    if json_file:
        checked.append(_check_json(json_file, images, json_file, options))
    if cityscapes:
        splits = [s for s in ("train", "val") if os.path.isdir(os.path.join(cityscapes, "leftImg8bit", s))]
        if not splits:
            raise FileNotFoundError(f"{cityscapes}: neither leftImg8bit/train nor leftImg8bit/val is there")
        for split in splits:
            image_dir, gt_dir = (os.path.join(cityscapes, part, split) for part in ("leftImg8bit", "gtFine"))
            checked.append(_check_city(image_dir, gt_dir, f"{cityscapes} {split}", decode))
    return checked


def _check_registered(name, options):
    if name not in DatasetCatalog.list():
        raise ValueError(f"{name!r} is not a registered data set; for your own use --json and --images")
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") and metadata.get("image_root"):
        only = None
        if os.path.isfile(metadata.json_file):
            try:  # a low-shot set has only some of the images
                only = {record["image_id"] for record in DatasetCatalog.get(name)}
            except Exception:  # the check below finds what Detectron2 stops at
                only = None
        return _check_json(metadata.json_file, metadata.image_root, name, options, only)
    if metadata.get("evaluator_type") == "cityscapes_instance" and metadata.get("gt_dir"):
        return _check_city(metadata.image_dir, metadata.gt_dir, name, options["decode"])
    if is_voc(name):
        return _check_voc(name, metadata, options["decode"], options["allow_outside"])
    raise ValueError(f"{name!r} is neither of COCO instance annotations nor Cityscapes instances nor Pascal VOC")


def _check_json(path, images, name, options, only=None):
    report, content = check_coco(path, images, name, only=only, **options)
    if content is None:
        return report, []
    if not options["masks"]:
        content["annotations"] = [a | {"segmentation": []} for a in content["annotations"] if isinstance(a, dict)]
    return report, _coco_records(content, images, report.classes, options["allow_outside"])


def _check_city(image_dir, gt_dir, name, decode):
    report = check_cityscapes(image_dir, gt_dir, name, decode=decode)
    try:
        files = list_files(image_dir, gt_dir)
    except FileNotFoundError:
        return report, []
    classes, records = list(report.classes), []
    for entry in pick_records([{"files": f} for f in files], PICTURES):
        try:
            record = read_one(entry["files"])
        except (OSError, ValueError):  # the check has reported it
            continue
        for annotation in record["annotations"]:
            annotation["category_id"] = classes.index(annotation["category_id"])
        records.append(record)
    return report, records


def _check_voc(name, metadata, decode, allow_outside):
    folder, places = metadata.dirname, {label: i for i, label in enumerate(metadata.thing_classes)}
    more = {"decode": decode, "allow_outside": allow_outside}
    report = check_voc(folder, metadata.split, metadata.thing_classes, name, **more)
    records = []
    for image in read_split(folder, metadata.split):
        if allow_outside or is_inside(folder, image):
            with contextlib.suppress(OSError, ValueError):  # the check has reported it
                records.append(load_one(folder, image, places))
    return report, pick_records(records, PICTURES)


def _coco_records(content, folder, classes, allow_outside):
    """A few images as Detectron2's dataset dicts, with the annotations that can be drawn."""
    indices, objects = {key: i for i, key in enumerate(classes)}, {}
    for a in content["annotations"]:
        if isinstance(a, dict) and type(a.get("image_id")) is int:
            objects.setdefault(a.get("image_id"), []).append(a)
    images = [i for i in content["images"] if isinstance(i, dict) and isinstance(i.get("file_name"), str)]
    images = [i for i in images if allow_outside or is_inside(folder, i["file_name"])]
    images = [i for i in images if type(i.get("id")) is int and _is_file(os.path.join(folder, i["file_name"]))]
    records = []
    for image in pick_records([{**i, "annotations": objects.get(i["id"])} for i in images], PICTURES):
        size = [image.get("height"), image.get("width")]
        drawn = [_drawable(a, indices, size) for a in image["annotations"] or []]
        file_name = os.path.join(folder, image["file_name"])
        records.append({"file_name": file_name, "annotations": [a for a in drawn if a]})
    return records


def _is_file(path):
    try:
        return os.path.isfile(path)
    except ValueError:  # a null byte in its name
        return False


def _drawable(annotation, indices, size):
    """An annotation in Detectron2's format without unusable polygons; None if it cannot be drawn."""
    box, mask = annotation.get("bbox"), annotation.get("segmentation")
    try:
        if annotation["category_id"] not in indices or not all(math.isfinite(v) for v in box) or min(box[2:]) < 0:
            return None
        if isinstance(mask, dict):
            mask = mask if isinstance(mask["counts"], str) and mask["size"] == size else []
        else:
            usable = [p for p in mask or [] if len(p) >= 6 and len(p) % 2 == 0]
            mask = [p for p in usable if all(math.isfinite(v) for v in p)]
        found = {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "segmentation": mask}
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return {**found, "category_id": indices[annotation["category_id"]], "iscrowd": annotation.get("iscrowd", 0)}


def draw_page(checked: Iterable[Checked], path: str | os.PathLike[str]) -> None:
    """Draw the images of :func:`check_all` with their annotations, as Detectron2 reads them, on one PNG.

    Args:
        checked: what :func:`check_all` returns.
        path: of the PNG, written whole or not at all.

    Raises:
        ValueError: if there is no image to draw.
        OSError: if the file cannot be written.
    """
    tiles = []
    for report, records in checked:
        metadata = Metadata(thing_classes=[str(name) for name in report.classes.values()])
        for record in records:
            try:
                image = read_image(record["file_name"])
            except UNREADABLE:
                continue
            caption = f"{Path(record['file_name']).name}: {len(record['annotations'])}"
            tile = draw_half(image, objects_of_record(record), metadata, caption)
            tiles.append(tile.resize((TILE, max(1, round(tile.height * TILE / tile.width)))))
    if not tiles:
        raise ValueError("there is no image to draw")
    rows = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
    heights = [max(tile.height for tile in row) for row in rows]
    page = Image.new("RGB", (TILE * max(map(len, rows)), sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            page.paste(tile, (TILE * column, sum(heights[:number])))
    write_whole(path, lambda file: page.save(file, "PNG"))


def write_report(reports: Iterable[Report], path: str | os.PathLike[str]) -> None:
    """Write reports as a JSON list, whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    text = json.dumps([report.to_dict() for report in reports], indent=1)
    write_whole(path, text + "\n")

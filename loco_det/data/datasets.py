"""Registering your own COCO-format data, and checking that a data set is there and sane before training."""

import json
import math
import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances

FIELDS = {  # what pycocotools and Detectron2 read of each entry
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
}


def prepare_datasets(cfg):
    """Register the custom data set, if there is one, and check every data set that the config names.

    Args:
        cfg: the Detectron2 config, not frozen; for custom data DATASETS.TRAIN and TEST, MODEL.ROI_HEADS.NUM_CLASSES
            and INPUT.MASK_FORMAT are set.

    Raises:
        FileNotFoundError: if annotations or images are missing.
        ValueError: if annotations are wrong, or the number of classes is not that of the data.
    """
    _register_custom(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        try:
            metadata = MetadataCatalog.get(name) if name in MetadataCatalog.list() else None
            paths = [metadata.get(key) for key in ("json_file", "image_root", "image_dir", "gt_dir")]
        except AttributeError:
            raise ValueError(f"DATASETS: {name!r} is not a registered data set") from None
        for path in filter(None, paths):
            if not os.path.exists(path):
                root = os.environ.get("DETECTRON2_DATASETS", "datasets (its default)")
                raise FileNotFoundError(
                    f"data set {name}: {path} is not there; DETECTRON2_DATASETS is {root} and has to be the folder "
                    "that holds coco/ or cityscapes/"
                )
        classes = len(metadata.get("thing_classes") or [])
        if classes and classes != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ValueError(
                f"data set {name} has {classes} classes, MODEL.ROI_HEADS.NUM_CLASSES is "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}: set it to {classes}"
            )


def _register_custom(cfg):
    custom, names = cfg.DATASETS.CUSTOM, {}
    for split in ("TRAIN", "TEST"):
        path, images = custom[f"{split}_JSON"], custom[f"{split}_IMAGES"]
        if bool(path) != bool(images):
            raise ValueError(f"DATASETS.CUSTOM.{split}_JSON and DATASETS.CUSTOM.{split}_IMAGES go together: set both")
        if path:
            names[split], has_rle = check_coco(path, images)
            if has_rle:  # Detectron2's polygon masks cannot hold run-length encoded ones
                cfg.INPUT.MASK_FORMAT = "bitmask"
    if not names:
        return
    if len({tuple(classes.items()) for classes in names.values()}) > 1:
        raise ValueError(f"{custom.TRAIN_JSON} and {custom.TEST_JSON} list different categories")
    for split in names:
        name = f"{custom.NAME}_{split.lower()}"
        if name in MetadataCatalog.list():
            raise ValueError(f"DATASETS.CUSTOM.NAME {custom.NAME}: {name} is registered already; choose another")
        register_coco_instances(name, {}, custom[f"{split}_JSON"], custom[f"{split}_IMAGES"])
    cfg.DATASETS.TRAIN = (f"{custom.NAME}_train",) if "TRAIN" in names else ()
    cfg.DATASETS.TEST = (f"{custom.NAME}_test",) if "TEST" in names else ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(next(iter(names.values())))


def check_coco(path, images):
    """Check a COCO instance annotation file against itself and its folder of images.

    Args:
        path: the JSON file.
        images: folder that the file names in it start from.

    Returns:
        tuple: dict of category id -> name, in order of the ids, which is the order of the classes; and whether any
        object's mask is run-length encoded.

    Raises:
        FileNotFoundError: if the file, the folder or an image is missing.
        ValueError: on the first annotation that cannot be right; the message names it.
    """
    if not os.path.isdir(images):
        raise FileNotFoundError(f"{images}: no such folder of images")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such annotation file")
    with open(path, "rb") as f:
        try:
            content = json.load(f)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in FIELDS):
        raise ValueError(f"{path} is no COCO instance file: it needs the lists {', '.join(FIELDS)}")
    for part, fields in FIELDS.items():
        for entry in content[part]:
            lacking = [field for field in fields if field not in entry]
            if lacking:
                raise ValueError(f"{path}: {part}: the entry with id {entry.get('id')} lacks {', '.join(lacking)}")
    ids = [annotation["id"] for annotation in content["annotations"]]
    if not ids:
        raise ValueError(f"{path}: no annotations")
    if len(set(ids)) < len(ids) or 0 in ids:  # pycocotools takes id 0 for "no match"
        raise ValueError(f"{path}: the ids of annotations must be different from each other and from 0")
    classes = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
    if not classes or len(classes) != len(content["categories"]):
        raise ValueError(f"{path}: categories are missing or an id stands twice")
    files = {image["id"]: image["file_name"] for image in content["images"]}
    missing = [name for name in files.values() if not os.path.isfile(os.path.join(images, name))]
    if missing:
        raise FileNotFoundError(f"{path}: {len(missing)} of {len(files)} images are not in {images}: {missing[0]}, ...")
    for annotation in content["annotations"]:
        problem = _problem(annotation, classes, files)
        if problem:
            raise ValueError(f"{path}: annotation {annotation['id']}: {problem}")
    return classes, any(isinstance(a["segmentation"], dict) for a in content["annotations"] if not a.get("iscrowd"))


def _problem(annotation, classes, files):
    """What is wrong with an annotation, in words; None if nothing is."""
    if annotation["category_id"] not in classes:
        return f"category_id {annotation['category_id']} is not among the categories {list(classes)}"
    if annotation["image_id"] not in files:
        return f"image_id {annotation['image_id']} is not among the images"
    where, box = f"of {files[annotation['image_id']]}", annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(_finite(v) for v in box):
        return f"{where} has the bbox {box}, not the numbers [x, y, width, height]"
    if min(box[2:]) <= 0:
        return f"{where} has a box of zero size, {box}: remove or mend it"
    shape = annotation["segmentation"]
    if isinstance(shape, list) and not any(len(polygon) >= 6 for polygon in shape):
        return f"{where} has no segmentation with a polygon of three points, which Mask R-CNN needs"
    return None


def _finite(value):
    return isinstance(value, int | float) and math.isfinite(value)

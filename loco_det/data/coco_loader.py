"""COCO instance files as Detectron2's dataset dicts, read by the same reader as in the checks."""

import functools
import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import coco as d2
from detectron2.structures import BoxMode
from pycocotools import mask as mask_utils

from .coco_files import as_coco, explained, read_coco, without_collector


def use_own_reader(masks: bool = True) -> None:
    """Register :func:`load_coco` for the data sets that Detectron2 loads from COCO instance files.

    The check and the loader then read the same. Sets with keypoints and sets with other loaders stay as they are.

    Args:
        masks: whether masks are loaded.
    """
    for name in DatasetCatalog.list():
        metadata, loader = MetadataCatalog.get(name), DatasetCatalog[name]
        ours = isinstance(loader, functools.partial) and loader.func is load_coco
        if not ours and (getattr(loader, "__module__", None) != d2.__name__ or metadata.get("keypoint_names")):
            continue
        if metadata.get("evaluator_type") == "coco" and metadata.get("json_file"):
            DatasetCatalog.remove(name)
            load = functools.partial(load_coco, metadata.json_file, metadata.image_root, name, masks)
            DatasetCatalog.register(name, load)


@without_collector()
def load_coco(path: str, images: str, name: str, masks: bool = True) -> list[dict[str, Any]]:
    """Load a COCO instance file that has passed the check, as Detectron2's ``load_coco_json`` does.

    Args:
        path: the JSON file.
        images: folder that its file names are relative to.
        name: of the registered data set; its metadata get the classes.
        masks: whether masks are loaded. If so, objects without a usable polygon are left out.

    Returns:
        Detectron2's dataset dicts, in order of the image ids.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :func:`read_coco`; also if the data set is registered with other classes.
    """
    content = read_coco(path, ("images", "categories"))
    with explained(path):
        return _records(as_coco(content), path, images, name, masks)


def _records(coco, path, images, name, masks):
    categories = sorted(coco.cats)
    places = {category: i for i, category in enumerate(categories)}
    metadata = MetadataCatalog.get(name)
    try:
        metadata.set(thing_classes=[coco.cats[i]["name"] for i in categories], thing_dataset_id_to_contiguous_id=places)
    except AssertionError:
        raise ValueError(
            f"{path}: its categories are not those of the data set {name}; train on it as DATASETS.CUSTOM"
        ) from None
    records = []
    for key in sorted(coco.imgs):
        image, annotations = coco.imgs[key], coco.imgToAnns.get(key, [])
        objects = [o for o in (_object(a, places, masks) for a in annotations) if o]
        size = {"height": image["height"], "width": image["width"]}
        file_name = os.path.join(images, image["file_name"])
        records.append({"file_name": file_name, **size, "image_id": key, "annotations": objects})
    return records


def _object(annotation, places, masks):
    """An annotation in Detectron2's format; None if it has polygons, but none with three or more points."""
    kept = {"iscrowd": annotation["iscrowd"], "bbox": annotation["bbox"]}
    kept |= {"category_id": places[annotation["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
    mask = annotation.get("segmentation") if masks else None
    if isinstance(mask, dict):
        if isinstance(mask["counts"], list):
            mask = mask_utils.frPyObjects(mask, *mask["size"])
        kept["segmentation"] = mask
    elif mask:
        usable = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if not usable:
            return None
        kept["segmentation"] = usable
    return kept

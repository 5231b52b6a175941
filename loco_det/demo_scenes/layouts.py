"""One generated scene as files: an image, COCO annotations, Cityscapes ground truth, or a Pascal VOC annotation."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from pycocotools import mask as mask_util

from pretrain.files.atomic import named_errors

from .backdrops import BUILDING, ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION, WALL
from .pictograms import CLASSES
from .scenes import Scene

JPEG_QUALITY = 92
MIN_POLYGON_IOU = 0.95  # of the decoded polygons with the exact mask; below it RLE is written
# Label ids of cityscapesscripts.helpers.labels
THING_IDS = dict(zip(CLASSES, (24, 25, 26, 27, 28, 31, 32, 33), strict=True))
# Names of Pascal VOC. It takes riders for persons, and does not annotate trucks
VOC_NAMES = {
    "person": "person",
    "rider": "person",
    "car": "car",
    "bus": "bus",
    "train": "train",
    "motorcycle": "motorbike",
    "bicycle": "bicycle",
}
MOSTLY_HIDDEN = 0.6  # of a silhouette: an object that shows less is marked as difficult in VOC's layout
STUFF_NAMES = {
    ROAD: "road",
    SIDEWALK: "sidewalk",
    BUILDING: "building",
    WALL: "wall",
    VEGETATION: "vegetation",
    TERRAIN: "terrain",
    SKY: "sky",
}


def _write_picture(path, array, *options):
    """Encode an (H, W) or RGB (H, W, 3) array by the path's suffix. imwrite would not say why it failed."""
    if array.ndim == 3:
        array = array[:, :, ::-1]
    with named_errors(path):
        path.write_bytes(cv2.imencode(path.suffix, array, options)[1].tobytes())


def write_image(scene: Scene, folder: Path, index: int) -> None:
    """Write the image alone, as JPEG.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    _write_picture(folder / f"{index:06d}.jpg", scene.image, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)


def write_coco_image(scene: Scene, folder: Path, index: int) -> list[dict[str, Any]]:
    """Write the image, as JPEG.

    Returns:
        Its annotations in COCO's format, without ``id`` and ``image_id``: :func:`coco_dataset` adds them.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    write_image(scene, folder, index)
    records = []
    for thing in scene.instances:
        rle = mask_util.encode(np.asfortranarray(thing.mask, np.uint8))
        records.append(
            {
                "category_id": thing.category + 1,
                "segmentation": _segmentation(thing.mask, rle),
                "area": float(mask_util.area(rle)),
                "bbox": mask_util.toBbox(rle).tolist(),  # x, y, width, height in pixels
                "iscrowd": 0,
            }
        )
    return records


def _segmentation(mask, rle):
    """The mask as polygons if they decode to it, else as RLE in COCO's JSON form."""
    polygons = mask_polygons(mask)
    decoded = mask_util.merge(mask_util.frPyObjects(polygons, *mask.shape))
    if mask_util.iou([decoded], [rle], [0])[0, 0] >= MIN_POLYGON_IOU:
        return polygons
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def mask_polygons(mask: np.ndarray) -> list[list[int]]:
    """The outer borders of a mask along pixel edges, so that pycocotools decodes them to the mask without its holes.

    OpenCV follows the centres of the border pixels, and such a polygon is half a pixel too thin on every side. In an
    image of twice the size, rounding the centres outwards gives the pixel edges.

    Args:
        mask: (H, W) bool.

    Returns:
        [x0, y0, x1, y1, ...] for each connected part, in COCO's coordinates (the top left pixel covers 0 to 1).
    """
    double = np.kron(mask, np.ones((2, 2), np.uint8))
    polygons = []
    for outline in cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        corners = (outline[:, 0] + 1) // 2
        step = np.diff(corners, axis=0, append=corners[:1])
        corners, step = corners[step.any(1)], step[step.any(1)]
        turns = (step != np.roll(step, 1, axis=0)).any(1)
        polygons.append(corners[turns].ravel().tolist())
    return polygons


def coco_dataset(records: Sequence[Sequence[dict[str, Any]]], size: Sequence[int]) -> dict[str, Any]:
    """Join the annotations of all images into the content of one COCO file.

    Ids start at 1: pycocotools takes annotation id 0 for "no match".

    Args:
        records: results of :func:`write_coco_image` in the order of the images.
        size: (height, width) of the images in pixels.
    """
    images = [
        {"id": i + 1, "file_name": f"{i:06d}.jpg", "height": size[0], "width": size[1]} for i in range(len(records))
    ]
    flat = chain.from_iterable(({"image_id": i + 1, **record} for record in group) for i, group in enumerate(records))
    return {
        "info": {"description": "loco-det demo scenes"},
        "licenses": [],
        "images": images,
        "annotations": [{"id": n + 1, **annotation} for n, annotation in enumerate(flat)],
        "categories": [{"id": c + 1, "name": name, "supercategory": "thing"} for c, name in enumerate(CLASSES)],
    }


def write_cityscapes(scene: Scene, folder: Path, index: int, split: str) -> None:
    """Write the image and its three ground-truth files below the folder.

    Instance ids are label id * 1000 + a count within the class; stuff has its label id. As in Cityscapes itself, a
    polygon is the whole silhouette without holes, and later polygons cover earlier ones.

    Args:
        scene: what to write.
        folder: has the folders of the split's city.
        index: number of the scene in the split, part of the file names.
        split: "train" or "val".

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    ids = scene.stuff.astype(np.uint16)
    seen = dict.fromkeys(CLASSES, 0)
    objects = _stuff_objects(scene.stuff)
    for thing in scene.instances:
        name = CLASSES[thing.category]
        ids[thing.mask] = THING_IDS[name] * 1000 + seen[name]
        seen[name] += 1
        objects += [{"label": name, "polygon": _outlines(thing.silhouette)[0]}]
    labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    stem = f"{split}/demo{split}/demo{split}_{index:06d}_000000"
    _write_picture(folder / "leftImg8bit" / f"{stem}_leftImg8bit.png", scene.image)
    _write_picture(folder / "gtFine" / f"{stem}_gtFine_instanceIds.png", ids)
    _write_picture(folder / "gtFine" / f"{stem}_gtFine_labelIds.png", labels)
    height, width = ids.shape
    text = json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects})
    path = folder / "gtFine" / f"{stem}_gtFine_polygons.json"
    with named_errors(path):
        path.write_text(text)


def write_voc(scene: Scene, folder: Path, index: int) -> None:
    """Write the image, as JPEG, and its annotation.

    Args:
        scene: what to write.
        folder: such as VOC2007, with JPEGImages and Annotations.
        index: number of the scene, the name of its files.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    write_image(scene, folder / "JPEGImages", index)
    height, width, depth = scene.image.shape
    root = ElementTree.Element("annotation")
    _add(root, {"folder": folder.name, "filename": f"{index:06d}.jpg"})
    _add(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": depth})
    _add(root, {"segmented": 0})
    for thing in scene.instances:
        if name := VOC_NAMES.get(CLASSES[thing.category]):
            y, x = np.nonzero(thing.mask)
            difficult = int(thing.mask.sum() < MOSTLY_HIDDEN * thing.silhouette.sum())
            truncated = int(thing.mask.sum() < thing.silhouette.sum())
            entry = ElementTree.SubElement(root, "object")
            _add(entry, {"name": name, "pose": "Unspecified", "truncated": truncated, "difficult": difficult})
            # The first and the last pixel of the box, counted from 1
            corners = {"xmin": x.min() + 1, "ymin": y.min() + 1, "xmax": x.max() + 1, "ymax": y.max() + 1}
            _add(ElementTree.SubElement(entry, "bndbox"), corners)
    ElementTree.indent(root)
    path = folder / "Annotations" / f"{index:06d}.xml"
    with named_errors(path):
        path.write_text(ElementTree.tostring(root, encoding="unicode") + "\n")


def _add(element, values):
    for tag, value in values.items():
        ElementTree.SubElement(element, tag).text = str(value)


def _stuff_objects(stuff):
    """Polygons of the backdrop, the largest first: later ones are drawn over earlier ones."""
    found = [(label, line) for label in np.unique(stuff).tolist() for line in _outlines(stuff == label)]
    found.sort(key=lambda item: -cv2.contourArea(np.array(item[1], np.int32)))
    return [{"label": STUFF_NAMES[label], "polygon": line} for label, line in found]


def _outlines(mask):
    """Outer borders through the centres of border pixels: Cityscapes' integer polygons include their border."""
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    lines = [contour[:, 0].tolist() for contour in contours]
    return [line + line[-1:] * (3 - len(line)) for line in lines]  # one or two pixels need three corners too

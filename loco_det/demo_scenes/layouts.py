"""How one generated scene is written: as a picture, as COCO annotations, as Cityscapes ground truth."""

import json
from itertools import chain

import cv2
import numpy as np
from pycocotools import mask as mask_util

from pretrain.files.atomic import named_errors

from .backdrops import BUILDING, ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION, WALL
from .scenes import CLASSES

JPEG_QUALITY = 92
MIN_POLYGON_IOU = 0.95  # of the decoded polygons with the exact mask, below which RLE is written
# label ids of cityscapesscripts.helpers.labels
THING_IDS = dict(zip(CLASSES, (24, 25, 26, 27, 28, 31, 32, 33), strict=True))
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
    """Encodes an (H, W) or RGB (H, W, 3) array by the path's suffix. imwrite would not say why it failed."""
    if array.ndim == 3:
        array = array[:, :, ::-1]
    with named_errors(path):
        path.write_bytes(cv2.imencode(path.suffix, array, options)[1].tobytes())


def write_image(scene, folder, index):
    """Writes the scene's picture alone, as JPEG."""
    _write_picture(folder / f"{index:06d}.jpg", scene.image, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)


def write_coco_image(scene, folder, index):
    """Writes the picture and returns its annotations, a list of dict without the ids that need the whole set."""
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
    """Polygons if they decode to the mask, else the mask's RLE as JSON holds it."""
    polygons = mask_polygons(mask)
    decoded = mask_util.merge(mask_util.frPyObjects(polygons, *mask.shape))
    if mask_util.iou([decoded], [rle], [0])[0, 0] >= MIN_POLYGON_IOU:
        return polygons
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def mask_polygons(mask):
    """The outer borders of a mask along the edges of its pixels, so that pycocotools gives it back (without holes).

    OpenCV follows the centres of the border pixels, which as a polygon would be half a pixel too thin all around. In an
    image of twice the size, rounding those centres away from the inside gives the pixel edges instead.

    Args:
        mask: (H, W) bool.

    Returns:
        list: one [x0, y0, x1, y1, ...] a connected part, in COCO's coordinates (the top left pixel covers 0 to 1).
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


def coco_dataset(records, size):
    """Joins the annotations of all images, in their order, into one COCO dictionary.

    Ids count from 1: pycocotools takes an annotation of id 0 for no match.
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


def write_cityscapes(scene, folder, index, split):
    """Writes the picture and its three ground-truth files below the folder.

    Instance ids are label id * 1000 + a count within the class; stuff keeps its label id. As in Cityscapes itself, a
    polygon is the whole silhouette without holes, and later polygons cover earlier ones.
    """
    ids, seen = scene.stuff.astype(np.uint16), dict.fromkeys(CLASSES, 0)
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


def _stuff_objects(stuff):
    """Polygons of the backdrop, each larger one before those that lie in it: later ones are drawn over earlier ones."""
    found = [(label, line) for label in np.unique(stuff).tolist() for line in _outlines(stuff == label)]
    found.sort(key=lambda item: -cv2.contourArea(np.array(item[1], np.int32)))
    return [{"label": STUFF_NAMES[label], "polygon": line} for label, line in found]


def _outlines(mask):
    """Outer borders through the centres of the border pixels: Cityscapes' integer polygons include their border."""
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    lines = [contour[:, 0].tolist() for contour in contours]
    return [line + line[-1:] * (3 - len(line)) for line in lines]  # one or two pixels still need three corners

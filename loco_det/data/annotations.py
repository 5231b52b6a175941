"""An image's boxes and polygons transformed all at once, with the bits of Detectron2's way one by one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances

from .resize import ByteResize

# What these make of a point depends on no other point, and of a polygon only on its points (cropping cuts polygons)
POINTWISE = (ByteResize, T.ResizeTransform, T.HFlipTransform, T.VFlipTransform, T.NoOpTransform)


def instances_at_once(
    objects: Sequence[dict[str, Any]],
    transforms: T.TransformList,
    image_size: tuple[int, int],
    mask_format: str | None,
) -> Instances | None:
    """Detectron2's ``transform_instance_annotations`` of each object, and its ``annotations_to_instances`` of all.

    Args:
        objects: annotations in Detectron2's format; not changed.
        transforms: of the image.
        image_size: height and width afterwards.
        mask_format: INPUT.MASK_FORMAT; None: masks are left out.

    Returns:
        Instances with equal boxes, classes and masks. None for what has to go Detectron2's own way: other transforms
        than :data:`POINTWISE`, RLE masks, boxes and polygons that are no plain numbers.

    Raises:
        ValueError: as Detectron2's functions, of polygons with an odd number of coordinates or too few.
    """
    if any(type(step) not in POINTWISE for step in transforms.transforms):
        return None
    boxes = _boxes(objects, transforms, image_size)
    if boxes is None:
        return None
    found: list[dict[str, Any]] = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": thing["category_id"]}
        for thing, box in zip(objects, boxes, strict=True)
    ]
    if mask_format and any("segmentation" in thing for thing in objects):
        masks: list[Any] = [thing.get("segmentation") for thing in objects]
        if not all(isinstance(mask, list) for mask in masks):
            return None
        polygons = [np.asarray(polygon).reshape(-1, 2) for mask in masks for polygon in mask]
        if not all(polygon.dtype in (np.float64, np.int64) for polygon in polygons):
            return None
        moved = iter(_each_type(polygons, transforms.apply_coords))
        for entry, mask in zip(found, masks, strict=True):
            entry["segmentation"] = [next(moved).reshape(-1) for _ in mask]
    return detection_utils.annotations_to_instances(found, image_size, mask_format or "polygon")


def _boxes(objects, transforms, image_size):
    """The transformed and clipped boxes, (N, 4) XYXY; None if they are not all lists of four numbers in one mode."""
    modes = {thing["bbox_mode"] for thing in objects}
    if not objects:
        return np.zeros((0, 4))
    kinds = [{type(x) for x in thing["bbox"]} for thing in objects if type(thing["bbox"]) is list]
    if len(kinds) < len(objects) or not all(kind <= {int, float} for kind in kinds) or len(modes) > 1:
        return None
    if not modes <= {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS} or any(len(thing["bbox"]) != 4 for thing in objects):
        return None
    wide = modes == {BoxMode.XYWH_ABS}
    rows = [_row(thing["bbox"], wide) for thing in objects]
    clip = np.array([*image_size[::-1], *image_size[::-1]])
    return np.concatenate(_each_type(rows, lambda boxes: np.minimum(transforms.apply_box(boxes).clip(min=0), clip)))


def _row(box, wide):
    """An (1, 4) XYXY box: whole numbers stay whole numbers, and BoxMode adds in float32 if one is not."""
    if not wide:
        return np.array([box])
    row = np.array([box], np.float32 if float in map(type, box) else np.int64)
    row[:, 2:] += row[:, :2]
    return row.astype(np.float64) if row.dtype == np.float32 else row


def _each_type(arrays: Sequence[np.ndarray], function: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """``function`` of the rows of all arrays, those of a type together: what Detectron2 computes of whole numbers, it
    cuts off to whole numbers."""
    found: list[np.ndarray] = [np.empty(0)] * len(arrays)
    for kind in {array.dtype for array in arrays}:
        places = [i for i, array in enumerate(arrays) if array.dtype == kind]
        rows = function(np.concatenate([arrays[i] for i in places]))
        ends = np.cumsum([len(arrays[i]) for i in places])
        for place, part in zip(places, np.split(rows, ends[:-1]), strict=True):
            found[place] = part
    return found

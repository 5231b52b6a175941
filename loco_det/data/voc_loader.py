"""Pascal VOC as Detectron2's dataset dicts, read by the same reader as in the checks."""

import functools
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import pascal_voc as d2
from detectron2.structures import BoxMode

from .voc_files import read_annotation, read_split

KIND = "pascal_voc"  # Detectron2's evaluator_type


def is_voc(name: str) -> bool:
    """Whether a registered data set is a folder in VOC's layout."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") == KIND and bool(metadata.get("dirname"))


def use_voc_reader() -> None:
    """Register :func:`load_voc` for the data sets that Detectron2 loads from VOC's files."""
    for name in DatasetCatalog.list():
        if getattr(DatasetCatalog[name], "__module__", None) == d2.__name__ and is_voc(name):
            metadata = MetadataCatalog.get(name)
            load = functools.partial(load_voc, metadata.dirname, metadata.split, metadata.thing_classes)
            DatasetCatalog.remove(name)
            DatasetCatalog.register(name, load)


def load_voc(folder: str, split: str, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Load a set that has passed the check, as Detectron2's ``load_voc_instances`` does.

    As there, objects that are marked as difficult are trained on, and a box is in coordinates from 0 on: the first
    pixel, xmin 1, begins at 0, and the last, xmax W, ends at W.

    Args:
        folder: such as VOC2007, with Annotations, ImageSets and JPEGImages.
        split: such as "trainval".
        classes: names, in the order of the class indices.

    Returns:
        Detectron2's dataset dicts, in the order of the split's list; an image that is listed twice comes once.

    Raises:
        OSError, ValueError: naming the file, if one is missing or not in VOC's format, or has a class of another name.
    """
    places = {name: index for index, name in enumerate(classes)}
    return [load_one(folder, name, places) for name in dict.fromkeys(read_split(folder, split))]


def load_one(folder: str, name: str, places: dict[str, int]) -> dict[str, Any]:
    """The dataset dict of one image; ``places`` has the index of each class. Raises as :func:`load_voc`."""
    found, objects = read_annotation(folder, name), []
    for thing in found.objects:
        if thing.name not in places:
            raise ValueError(f"{name}.xml in {folder}: the data set has no class {thing.name!r}")
        x0, y0, x1, y1 = thing.box
        box = [x0 - 1.0, y0 - 1.0, x1, y1]
        objects.append({"category_id": places[thing.name], "bbox": box, "bbox_mode": BoxMode.XYXY_ABS})
    path = os.path.join(folder, "JPEGImages", f"{name}.jpg")
    size = {"height": found.height, "width": found.width}
    return {"file_name": path, "image_id": name, **size, "annotations": objects}

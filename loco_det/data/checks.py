"""Checks of COCO instance annotations: everything that is wrong at once, not only the first."""

import contextlib
import gc
import json
import math
import operator
import os
from collections import Counter
from itertools import chain

import numpy as np
from pycocotools import mask as mask_utils

from loco_det.data.findings import Report, fill_table
from loco_det.data.image_files import check_files, check_images

FIELDS = {  # what pycocotools and Detectron2 read of each entry
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
}
TOLERANCE = 1.0  # pixels that boxes and polygons may reach out of the image: rounding, which COCO's own have


@contextlib.contextmanager
def without_collector():
    """Python's garbage collector finds nothing to free among millions of new lists, and triples the time."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def read_coco(path):
    """Parse a COCO instance file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no JSON, or not the lists that make up COCO's format.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        with open(path, "rb") as f:
            content = json.load(f)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in FIELDS):
        raise ValueError(f"{path} is no COCO instance file: it needs the lists {', '.join(FIELDS)}")
    return content


@without_collector()
def check_coco(path, images, name=None, full=True, decode=False, only=None):
    """Check a COCO instance file and the images that it names.

    Args:
        path: the JSON file.
        images: folder that the file names in it start from.
        name: of the data set, for messages; the path by default.
        full: also open the images, and look at the coordinates of the polygons and the size of the areas; without it
            the check of train2017 takes little more than parsing its 470 MB.
        decode: with ``full``, read all pixels of the images and not their headers only.
        only: ids of the images that are looked at; None for all of them.

    Returns:
        tuple: the ``Report``; and the parsed content, None if it cannot be parsed or without ``full``.

    Raises:
        FileNotFoundError: if the file or the folder is missing.
    """
    if not os.path.isdir(images):
        raise FileNotFoundError(f"{images}: no such folder of images")
    report = Report(name or str(path))
    try:
        content = read_coco(path)
    except ValueError as error:
        report.add("not_coco", str(error))
        return report, None
    if only is not None:
        content["images"] = [i for i in content["images"] if i.get("id") in only]
        content["annotations"] = [a for a in content["annotations"] if a.get("image_id") in only]
    report.images, report.annotations = len(content["images"]), len(content["annotations"])
    entries = {part: _whole(report, part, content[part]) for part in FIELDS}
    _check_categories(report, entries["categories"])
    known = _check_image_entries(report, entries["images"])
    annotations = _check_links(report, entries["annotations"], known)
    if annotations and all(a["iscrowd"] for a in annotations):
        report.add("empty", "crowd regions only")
    _check_boxes(report, annotations, known)
    areas = _check_masks(report, annotations, known, full)
    names = list(dict.fromkeys(image["file_name"] for image in known.values()))
    there = set(check_files(report, images, names))
    if full:
        _count(report, annotations, known)
        _check_areas(report, annotations, areas)
        sizes = {i["file_name"]: (i["width"], i["height"]) for i in known.values() if i["file_name"] in there}
        check_images(report, images, sizes, decode)
    return report, content if full else None


def _whole(report, part, entries):
    """The entries that have all fields, of types that the other checks can rely on."""
    fields = FIELDS[part]
    if _all_whole(entries, fields):
        return entries
    good = []
    for entry in entries:
        lacking = [field for field in fields if field not in entry] if isinstance(entry, dict) else []
        if not isinstance(entry, dict):
            report.add("wrong_type", f"{part}: {str(entry)[:60]}")
        elif lacking:
            report.add("field_missing", f"{part}: the entry with id {entry.get('id')} lacks {', '.join(lacking)}")
        elif not _all_whole([entry], fields):
            wrong = next(f for f in fields if not _TYPES[f]([entry[f]]))
            report.add("wrong_type", f"{part}: {wrong} {str(entry[wrong])[:60]} of the entry with id {entry['id']}")
        else:
            good.append(entry)
    return good


def _all_whole(entries, fields):
    """Whether all of many entries are as they should be; a column at a time, so that the loops are not Python's."""
    try:
        columns = zip(*map(operator.itemgetter(*fields), entries), strict=True)
        return all(_TYPES[field](column) for field, column in zip(fields, columns, strict=bool(entries)))
    except (KeyError, TypeError, IndexError):
        return False


def _types(values, *allowed):
    return set(map(type, values)) <= set(allowed)


def _are_boxes(values):
    return _types(values, list) and set(map(len, values)) <= {4} and _types(chain.from_iterable(values), int, float)


def _are_masks(values):
    """Lists of lists, run-length codes, or None."""
    listed = [value for value in values if type(value) is list]
    coded = [value for value in values if type(value) is dict]
    return (
        _types(values, list, dict, type(None))
        and _types(chain.from_iterable(listed), list)
        and all("counts" in value and "size" in value for value in coded)
    )


_TYPES = {  # each takes all values of a field
    **dict.fromkeys(("id", "image_id", "category_id", "height", "width"), lambda values: _types(values, int)),
    **dict.fromkeys(("name", "file_name"), lambda values: _types(values, str)),
    "area": lambda values: _types(values, int, float),
    "iscrowd": lambda values: _types(values, int, bool) and set(values) <= {0, 1},
    "bbox": _are_boxes,
    "segmentation": _are_masks,
}


def _twice(report, kind, values, text="{}"):
    if len(set(values)) < len(values):
        for value, count in Counter(values).items():
            if count > 1:
                report.add(kind, text.format(value), count - 1)


def _check_categories(report, categories):
    """Fill ``report.classes``."""
    if not categories:
        report.add("empty", "no categories")
    _twice(report, "category_id_twice", [c["id"] for c in categories], "category {}")
    _twice(report, "category_name_twice", [c["name"] for c in categories])
    report.classes = {c["id"]: c["name"] for c in sorted(categories, key=lambda c: c["id"])}
    ids = list(report.classes)
    if ids and ids != list(range(1, len(ids) + 1)):
        report.add("category_gaps", f"{len(ids)} ids from {ids[0]} to {ids[-1]}")


def _check_image_entries(report, images):
    """Returns {id: entry}, the last one of an id, which is the one that pycocotools keeps."""
    _twice(report, "image_id_twice", [image["id"] for image in images], "image {}")
    _twice(report, "file_name_twice", [image["file_name"] for image in images])
    return {image["id"]: image for image in images}


def _check_links(report, annotations, known):
    """Ids of the annotations and what they point to; returns those whose image and category are known."""
    if not annotations:
        report.add("empty", "no annotations")
    _twice(report, "annotation_id_twice", [a["id"] for a in annotations], "annotation {}")
    good = []
    for a in annotations:
        if a["id"] == 0:
            report.add("annotation_id_0", f"annotation 0 of image {a['image_id']}")
        if "ignore" in a and a["ignore"]:
            report.add("ignore", f"annotation {a['id']}")
        if a["image_id"] not in known:
            report.add("image_id_unknown", f"annotation {a['id']}: image_id {a['image_id']}")
        elif a["category_id"] not in report.classes:
            report.add("category_unknown", f"annotation {a['id']}: category_id {a['category_id']}")
        else:
            good.append(a)
    return good


def _check_boxes(report, annotations, known):
    if not annotations:
        return
    sizes = {key: (image["width"], image["height"]) for key, image in known.items()}
    x, y, w, h = np.array([a["bbox"] for a in annotations], float).T
    width, height = np.array([sizes[a["image_id"]] for a in annotations], float).T
    finite = np.isfinite([x, y, w, h]).all(0)
    negative, flat = finite & ((w < 0) | (h < 0)), finite & (w >= 0) & (h >= 0) & ((w == 0) | (h == 0))
    solid = finite & ~negative & ~flat
    outside = solid & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
    over = np.max([-x, -y, x + w - width, y + h - height], 0) > TOLERANCE
    found = {"box_not_finite": ~finite, "box_negative": negative, "box_flat": flat, "box_outside": outside}
    for kind, which in (found | {"box_cut": solid & over & ~outside}).items():
        for i in np.flatnonzero(which):
            a = annotations[i]
            file = known[a["image_id"]]["file_name"]
            report.add(kind, lambda a=a, file=file: f"annotation {a['id']} of {file}: bbox {a['bbox']}")


def _check_masks(report, annotations, known, full):
    """Returns the area in square pixels of each annotation's mask if ``full``, None where it cannot be told."""
    return [_check_mask(report, a, known[a["image_id"]], full) for a in annotations]


def _check_mask(report, annotation, image, full):
    segmentation, area = annotation["segmentation"], None
    if type(segmentation) is list and segmentation:
        lengths = list(map(len, segmentation))
        if not full and min(lengths) >= 6 and not any(n % 2 for n in lengths):
            return None

    def add(kind, more=""):
        report.add(kind, f"annotation {annotation['id']} of {image['file_name']}{more}")

    if not segmentation:
        add("mask_missing")
    elif type(segmentation) is dict:
        size, crowd = [image["height"], image["width"]], annotation["iscrowd"]
        report.has_rle |= not crowd
        if not crowd:
            add("run_length")
        if segmentation["size"] != size:
            add("rle_size", f": {segmentation['size']}, the image {size}")
        elif full and (area := _rle_area(segmentation)) is None:
            add("rle_broken")
    elif min(lengths) < 6 or any(n % 2 for n in lengths):
        _odd_polygons(add, lengths)
    else:
        area = _polygon_area(add, segmentation, image)
    return area


def _odd_polygons(add, lengths):
    for n in lengths:
        if n < 6:
            add("polygon_short", f": {n} coordinates")
        elif n % 2:
            add("polygon_odd", f": {n} coordinates")
    if lengths[0] < 6:
        add("mask_stops_evaluation", f": {lengths[0]} coordinates")
    if not any(n >= 6 and n % 2 == 0 for n in lengths):
        add("mask_dropped")


def _polygon_area(add, polygons, image):
    """Shoelace formula; polygons of one object do not overlap, as a rule."""
    area = 0.0
    for polygon in polygons:
        try:
            x, y = np.array(polygon, float).reshape(-1, 2).T
        except (TypeError, ValueError):
            add("wrong_type", f": polygon {str(polygon)[:60]}")
            return None
        if not (math.isfinite(x.sum()) and math.isfinite(y.sum())):
            add("polygon_not_finite")
            return None
        if max(-x.min(), -y.min(), x.max() - image["width"], y.max() - image["height"]) > TOLERANCE:
            add("polygon_cut")
        area += abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1])) / 2
    return area


def _rle_area(rle):
    """None if it cannot be decoded."""
    try:
        if isinstance(rle["counts"], list):
            total = sum(rle["counts"])
            return float(sum(rle["counts"][1::2])) if total == rle["size"][0] * rle["size"][1] else None
        return float(mask_utils.decode(rle).sum())
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _check_areas(report, annotations, areas):
    for a, area in zip(annotations, areas, strict=True):
        # the odd pixel is rounding; a fifth is more than drawing a polygon on pixels changes
        if area is not None and not abs(a["area"] - area) <= max(0.2 * area, 20):
            report.add("area", f"annotation {a['id']}: area {a['area']:g}, its mask has {area:g} pixels")


def _count(report, annotations, known):
    objects = [a for a in annotations if not a["iscrowd"]]
    crowds = len(annotations) - len(objects)
    if crowds:
        report.add("crowd", count=crowds)
    fill_table(report, *([a[key] for a in objects] for key in ("category_id", "image_id", "area")))
    with_objects, annotated = {a["image_id"] for a in objects}, {a["image_id"] for a in annotations}
    for key, image in known.items():
        if key not in annotated:
            report.add("no_annotations", image["file_name"])
        elif key not in with_objects:
            report.add("only_crowd", image["file_name"])

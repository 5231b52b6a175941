"""Checks of a data set in Pascal VOC's layout: the list, the annotations, the images, and the boxes in them."""

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from pretrain.files.image_folders import expect_folder

from ..voc_files import CORNERS, VOCImage, annotation_path, read_annotation, read_split
from .boxes import TOLERANCE
from .findings import Report, fill_table
from .image_files import check_files, check_images, is_inside

PARTS = ("Annotations", "ImageSets/Main", "JPEGImages")


def check_voc(
    folder: str,
    split: str,
    classes: Sequence[str],
    name: str | None = None,
    full: bool = True,
    decode: bool = False,
    allow_outside: bool = False,
) -> Report:
    """Check a split in VOC's layout. All of its annotations are read.

    Args:
        folder: such as VOC2007, with Annotations, ImageSets/Main and JPEGImages.
        split: such as "trainval".
        classes: names of the classes, in the order of their indices.
        name: of the data set, for messages; the folder and the split by default.
        full: also open the images, follow their links, and count the objects.
        decode: with ``full``, read all pixels of the images and not only their headers.
        allow_outside: whether names in the list may lead out of the folder.

    Returns:
        The report, with the classes' indices as category ids.

    Raises:
        FileNotFoundError: if a folder or the split's list is missing.
        ValueError: if the list cannot be read.
    """
    for part in PARTS:
        expect_folder(os.path.join(folder, part), "folder of Pascal VOC's layout")
    report = Report(name or f"{folder} {split}")
    report.classes = dict(enumerate(classes))
    listed = read_split(folder, split)
    names = list(dict.fromkeys(listed))
    report.images = len(names)
    if not names:
        report.add("empty", f"no images in ImageSets/Main/{split}.txt")
    for twice, count in Counter(listed).items() if len(names) < len(listed) else ():
        if count > 1:
            report.add("name_listed_twice", f"{twice} in ImageSets/Main/{split}.txt", count - 1)
    images = os.path.join(folder, "JPEGImages")
    there = set(check_files(report, images, [f"{n}.jpg" for n in names], allow_outside, links=full))
    annotations = _read_all(report, folder, [n for n in names if allow_outside or is_inside(images, n)])
    _check_objects(report, annotations, full)
    if full:
        sizes = {f"{a.name}.jpg": (a.width, a.height) for a in annotations}
        check_images(report, images, {file: size for file, size in sizes.items() if file in there}, decode)
    return report


def _read_all(report, folder, names) -> list[VOCImage]:
    """The annotations that can be read; the others are reported."""
    found = []
    for name in tqdm(names, "annotations", unit="file", disable=None, leave=False):
        try:
            found.append(read_annotation(folder, name))
        except FileNotFoundError:
            report.add("file_missing", annotation_path(folder, name))
        except OSError as error:
            report.add("file_broken", f"{annotation_path(folder, name)}: {error.strerror or error}")
        except ValueError as error:
            report.add("file_broken", str(error))
    return found


def _check_objects(report, annotations, full):
    """Check classes and boxes; with ``full``, count the objects of each class."""
    objects = [(image, number, thing) for image in annotations for number, thing in enumerate(image.objects, 1)]
    report.annotations = len(objects)
    if annotations and not objects:
        report.add("empty", "no objects")
    places = {label: index for index, label in report.classes.items()}

    def where(i):
        image, number, thing = objects[i]
        return f"object {number} ({' '.join(thing.name.split())[:40]}) of {image.name}.xml"

    def where_box(i):
        return f"{where(i)}: {', '.join(f'{key} {v:g}' for key, v in zip(CORNERS, objects[i][2].box, strict=True))}"

    report.add_each("class_unknown", [i for i, (*_, thing) in enumerate(objects) if thing.name not in places], where)
    boxes = np.array([thing.box for *_, thing in objects], float).reshape(-1, 4)
    size = np.array([(image.width, image.height) for image, *_ in objects], float).reshape(-1, 2)
    low, high = boxes[:, :2] - 1, boxes[:, 2:]
    negative, flat = (high < low).any(1), (high == low).any(1)
    solid = ~negative & ~flat
    outside = solid & ((low >= size) | (high <= 0)).any(1)
    cut = solid & ~outside & (np.maximum(-low, high - size).max(1, initial=-np.inf) > TOLERANCE)
    found = {"corners_swapped": negative, "box_flat": flat & ~negative, "box_outside": outside, "box_cut": cut}
    for kind, which in found.items():
        report.add_each(kind, np.flatnonzero(which), where_box)
    difficult = sum(thing.difficult for *_, thing in objects)
    if difficult:
        report.add("difficult", count=difficult)
    if not full:
        return
    counted = [(places[t.name], i.name, a) for (i, _, t), a in zip(objects, (high - low).prod(1), strict=True)
               if t.name in places]  # fmt: skip
    fill_table(report, *(zip(*counted, strict=True) if counted else ((), (), ())))
    for image in annotations:
        if not image.objects:
            report.add("no_annotations", f"{image.name}.xml")

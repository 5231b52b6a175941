"""Checks of a Cityscapes split: files, polygons and labels."""

import json
import os
from collections import Counter

import numpy as np
from tqdm import tqdm

from pretrain.files.image_folders import expect_folder

from .findings import Report, fill_table
from .image_files import check_images

IMAGE, TRUTH = "_leftImg8bit.png", "_gtFine_"
NEEDED = ("instanceIds.png", "polygons.json")  # read for evaluation and for training
TOLERANCE = 1.0  # pixels


def check_cityscapes(
    image_dir: str, gt_dir: str, name: str | None = None, full: bool = True, decode: bool = False
) -> Report:
    """Check a split of Cityscapes in its own layout.

    Args:
        image_dir, gt_dir: folders such as leftImg8bit/train and gtFine/train, with a folder for each city.
        name: of the data set, for messages; ``image_dir`` by default.
        full: also read the polygons and open the images; otherwise only the names of the files are compared.
        decode: with ``full``, read all pixels of the images and not only their headers.

    Returns:
        The report, with Cityscapes' label ids as category ids. The areas in its table are those of whole polygons,
        before occlusion.

    Raises:
        FileNotFoundError: if a folder is missing.
    """
    for folder in (image_dir, gt_dir):
        expect_folder(folder, "folder")
    from cityscapesscripts.helpers.labels import labels

    report = Report(name or str(image_dir))
    report.classes = {label.id: label.name for label in labels if label.hasInstances and not label.ignoreInEval}
    stems = _check_names(report, image_dir, gt_dir)
    report.images = len(stems)
    if not stems:
        report.add("empty", "no images")
    elif full:
        sizes = _check_polygons(report, stems, gt_dir)
        check_images(report, image_dir, {f"{stem}{IMAGE}": sizes.get(stem) for stem in stems}, decode)
        truth = {f"{s}{TRUTH}{NEEDED[0]}": sizes.get(s) for s in stems}
        check_images(report, gt_dir, {n: size for n, size in truth.items() if os.path.isfile(f"{gt_dir}/{n}")}, decode)
    return report


def _tree(folder):
    """The entries of the city folders as city/name, and the files beside these folders."""
    names, loose = [], []
    for city in sorted(os.listdir(folder)):
        path = os.path.join(folder, city)
        if os.path.isdir(path):
            names += [f"{city}/{entry}" for entry in sorted(os.listdir(path))]
        else:
            loose.append(city)
    return names, loose


def _check_names(report, image_dir, gt_dir):
    """Compare the names of the files; the images as city/city_000000_000000."""
    images, loose = _tree(image_dir)
    for entry in [*loose, *(i for i in images if not i.endswith(IMAGE))]:
        report.add("file_name", os.path.join(image_dir, entry))
    stems = [i.removesuffix(IMAGE) for i in images if i.endswith(IMAGE)]
    truth = set(_tree(gt_dir)[0])
    for stem in stems:
        for ending in NEEDED:
            if f"{stem}{TRUTH}{ending}" not in truth:
                report.add("file_missing", os.path.join(gt_dir, f"{stem}{TRUTH}{ending}"))
    for entry in sorted(truth - {f"{stem}{TRUTH}{NEEDED[0]}" for stem in stems}):
        if entry.endswith(f"{TRUTH}{NEEDED[0]}"):
            report.add("truth_alone", os.path.join(gt_dir, entry))
    return stems


def _check_polygons(report, stems, gt_dir):
    """Read all polygons; {stem: (width, height)} in pixels."""
    sizes, objects, crowds = {}, [], Counter()
    for stem in tqdm(stems, "polygons", unit="file", disable=None, leave=False):
        path = os.path.join(gt_dir, f"{stem}{TRUTH}{NEEDED[1]}")
        if not os.path.isfile(path):
            continue  # reported as missing
        try:
            with open(path, "rb") as f:
                content = json.load(f)
            size = sizes[stem] = content["imgWidth"], content["imgHeight"]
            found = [_check_object(report, o, size, path) for o in content["objects"] if "deleted" not in o]
        except (OSError, ValueError, KeyError, TypeError) as error:
            report.add("file_broken", f"{path}: {type(error).__name__}: {error}")
            continue
        report.annotations += sum(entry is not None for entry in found)
        mine = [(label, stem, area) for label, area, group in filter(None, found) if not group]
        crowds[stem] = sum(group for *_, group in filter(None, found))
        objects += mine
        if not mine:
            report.add("only_crowd" if crowds[stem] else "no_annotations", stem)
    if crowds.total():
        report.add("crowd", count=crowds.total())
    fill_table(report, *(zip(*objects, strict=True) if objects else ((), (), ())))
    return sizes


def _check_object(report, entry, size, path):
    """(label id, area in square pixels, whether it is a group) of an object of a class, None for anything else."""
    from cityscapesscripts.helpers.labels import name2label

    name, outline = entry["label"], np.array(entry["polygon"], float).reshape(-1, 2)
    group = name not in name2label and name.endswith("group")
    label = name2label.get(name.removesuffix("group") if group else name)
    if label is None:
        report.add("label_unknown", f"{path}: {name}")
        return None
    if label.id < 0:  # Detectron2 skips these without reading them
        return None
    where = f"{path}: {name}"
    if len(outline) < 3:
        report.add("outline_short", f"{where}, {len(outline)} points")
        return None
    if not np.isfinite(outline).all():
        report.add("polygon_not_finite", where)
        return None
    if outline.min() < -TOLERANCE or (outline.max(0) > np.array(size) - 1 + TOLERANCE).any():
        report.add("polygon_cut", where)
    if label.id not in report.classes:
        return None
    x, y = outline.T
    return label.id, abs(float(x @ np.roll(y, -1) - np.roll(x, -1) @ y)) / 2, group

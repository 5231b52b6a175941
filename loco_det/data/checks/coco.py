"""Checks of COCO instance annotations: all errors at once, not only the first."""

from collections import Counter
from collections.abc import Collection
from typing import Any

from pretrain.files.image_folders import expect_folder

from ..coco_files import read_coco, without_collector
from .boxes import check_areas, check_boxes
from .fields import FIELDS, whole_entries
from .findings import Report, fill_table
from .image_files import check_files, check_images
from .masks import check_masks
from .objects import Objects, Shapes


@without_collector()
def check_coco(
    path: str,
    images: str,
    name: str | None = None,
    full: bool = True,
    decode: bool = False,
    only: Collection[int] | None = None,
    masks: bool = True,
    allow_outside: bool = False,
) -> tuple[Report, dict[str, Any] | None]:
    """Check a COCO instance file and the images that it names.

    Args:
        path: the JSON file.
        images: folder that its file names are relative to.
        name: of the data set, for messages; the path by default.
        full: also open the images, follow their links, and count the objects. Annotations that stop training or
            evaluation are found without it too.
        decode: with ``full``, read all pixels of the images and not only their headers.
        only: ids of the images to check; None for all of them.
        masks: whether masks are trained on and evaluated; if not, segmentations are ignored.
        allow_outside: whether file names may lead out of the folder.

    Returns:
        The report, and the parsed content: None without ``full``, or if it cannot be parsed.

    Raises:
        FileNotFoundError: if the file or the folder is missing.
    """
    expect_folder(images)
    report = Report(name or str(path))
    try:
        content = read_coco(path)
    except ValueError as error:
        report.add("not_coco", str(error))
        return report, None
    if only is not None:
        for part, key in (("images", "id"), ("annotations", "image_id")):
            content[part] = [entry for entry in content[part] if isinstance(entry, dict) and entry.get(key) in only]
    report.images, report.annotations = len(content["images"]), len(content["annotations"])
    for part in FIELDS:
        if not content[part]:
            report.add("empty", f"no {part}")
    entries = {part: whole_entries(report, part, content[part], masks) for part in FIELDS}
    _check_categories(report, entries["categories"])
    known = _check_image_entries(report, entries["images"])
    annotations = _check_links(report, entries["annotations"], known, _listed(content))
    if annotations and all(a["iscrowd"] for a in annotations):
        report.add("empty", "crowd regions only")
    objects = Objects.of(annotations, known)
    shapes = check_masks(report, objects) if masks else Shapes.unknown(len(objects))
    check_areas(report, objects, shapes, check_boxes(report, objects, shapes))
    names = list(dict.fromkeys(image["file_name"] for image in known.values()))
    there = set(check_files(report, images, names, allow_outside, links=full))
    if full:
        _count(report, annotations, known)
        sizes = {i["file_name"]: (i["width"], i["height"]) for i in known.values() if i["file_name"] in there}
        check_images(report, images, sizes, decode)
    return report, content if full else None


def _listed(content):
    """The ids of all images and categories as text, also of faulty entries: references to them are not unknown."""
    return {
        part: {str(entry.get("id")).removesuffix(".0") for entry in content[part] if isinstance(entry, dict)}
        for part in ("images", "categories")
    }


def _add_duplicates(report, kind, values, text="{}"):
    if len(set(values)) < len(values):
        for value, count in Counter(values).items():
            if count > 1:
                report.add(kind, text.format(value), count - 1)


def _check_categories(report, categories):
    """Fill ``report.classes``."""
    _add_duplicates(report, "category_id_twice", [c["id"] for c in categories], "category {}")
    _add_duplicates(report, "category_name_twice", [c["name"] for c in categories])
    report.classes = {c["id"]: c["name"] for c in sorted(categories, key=lambda c: c["id"])}
    ids = list(report.classes)
    if ids and ids != list(range(1, len(ids) + 1)):
        report.add("category_gaps", f"{len(ids)} ids from {ids[0]} to {ids[-1]}")


def _check_image_entries(report, images):
    """The entries by id; of duplicates the last one, as in pycocotools."""
    _add_duplicates(report, "image_id_twice", [image["id"] for image in images], "image {}")
    _add_duplicates(report, "file_name_twice", [image["file_name"] for image in images])
    return {image["id"]: image for image in images}


def _check_links(report, annotations, known, listed):
    """Check the annotations' ids and references; the annotations whose image and category are known."""
    _add_duplicates(report, "annotation_id_twice", [a["id"] for a in annotations], "annotation {}")
    good = []
    for a in annotations:
        if a["id"] == 0:
            report.add("annotation_id_0", f"annotation 0 of image {a['image_id']}")
        if "ignore" in a and a["ignore"]:
            report.add("ignore", f"annotation {a['id']}")
        if a["image_id"] in known and a["category_id"] in report.classes:
            good.append(a)
        elif str(a["image_id"]) not in listed["images"]:
            report.add("image_id_unknown", f"annotation {a['id']}: image_id {a['image_id']}")
        elif str(a["category_id"]) not in listed["categories"]:
            report.add("category_unknown", f"annotation {a['id']}: category_id {a['category_id']}")
    return good


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

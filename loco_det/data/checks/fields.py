"""Types and ranges of the fields of COCO entries, checked a column at a time so that the loops run in C."""

import operator
from array import array
from itertools import chain
from typing import Any

from .findings import Report

FIELDS = {  # what pycocotools and Detectron2 read from each entry
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
}


def whole_entries(report: Report, part: str, entries: list[Any], masks: bool = True) -> list[dict[str, Any]]:
    """The entries that have all fields with valid types, on which the other checks rely; the others are reported.

    Args:
        report: gets ``field_missing`` and ``wrong_type``.
        part: "images", "categories" or "annotations".
        entries: parsed JSON values of any type.
        masks: whether the segmentations of annotations are checked. A missing one is reported by
            :func:`loco_det.data.checks.masks.check_masks`.
    """
    fields = FIELDS[part]
    masks = masks and part == "annotations"
    if _all_whole(entries, fields, masks):
        return entries
    good = []
    for entry in entries:
        if not isinstance(entry, dict):
            report.add("wrong_type", f"{part}: {str(entry)[:60]} must be an object {{...}}")
            continue
        lacking = [field for field in fields if field not in entry]
        if lacking:
            report.add("field_missing", f"{part}: the entry with id {entry.get('id')} lacks {', '.join(lacking)}")
        elif _all_whole([entry], fields, masks):
            good.append(entry)
        else:
            wrong = next((f for f in fields if not _are_valid(f, [entry[f]])), "segmentation")
            value = repr(entry[wrong])[:60]
            wanted = _WANTED[wrong][1]
            report.add("wrong_type", f"{part}: {wrong} {value} of the entry with id {entry['id']} must be {wanted}")
    return good


def _all_whole(entries, fields, masks):
    if not entries:
        return True
    try:
        columns = zip(*map(operator.itemgetter(*fields), entries), strict=True)
        whole = all(_are_valid(field, column) for field, column in zip(fields, columns, strict=True))
        return whole and (not masks or _are_masks([entry.get("segmentation") for entry in entries]))
    except (KeyError, TypeError, IndexError):
        return False


def _are_valid(field, values):
    return _WANTED[field][0](values)


def _types(values, *allowed):
    return set(map(type, values)) <= set(allowed)


def _are_ids(values):
    """Integers of 64 bits: pycocotools sorts them with numpy."""
    return _types(values, int) and -(2**63) <= min(values) and max(values) < 2**63


def _are_sizes(values):
    return _types(values, int) and min(values) > 0 and max(values) < 2**31


def _are_numbers(values):
    """Numbers that a float can hold; NaN and infinity are left to the checks of boxes and areas."""
    try:
        array("d", values)
    except (TypeError, OverflowError):
        return False
    return _types(values, int, float)


def _are_boxes(values):
    return _types(values, list) and set(map(len, values)) <= {4} and _are_numbers(list(chain.from_iterable(values)))


def _are_masks(values):
    """Lists of lists, RLE masks, or None."""
    listed = [value for value in values if type(value) is list]
    coded = [value for value in values if type(value) is dict]
    return (
        _types(values, list, dict, type(None))
        and _types(chain.from_iterable(listed), list)
        and all("counts" in value and "size" in value for value in coded)
    )


def _are_flags(values):
    return _types(values, int, bool) and set(values) <= {0, 1}


def _are_texts(values):
    return _types(values, str)


def _are_names(values):
    """Text without lone surrogates, which cannot be encoded. In file names they stand for bytes that are not UTF-8."""
    if not _are_texts(values):
        return False
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


_WHOLE = "a whole number without quotes, of 64 bits"
_WANTED = {  # field: (test of all of its values, what they have to be)
    **dict.fromkeys(("id", "image_id", "category_id"), (_are_ids, _WHOLE)),
    **dict.fromkeys(("height", "width"), (_are_sizes, "a positive whole number of pixels")),
    "file_name": (_are_texts, "text"),
    "name": (_are_names, "text in valid Unicode"),
    "area": (_are_numbers, "a number"),
    "iscrowd": (_are_flags, "0 or 1"),
    "bbox": (_are_boxes, "four numbers [x, y, width, height]"),
    "segmentation": (_are_masks, 'polygons [[x, y, x, y, ...], ...] or a run-length code {"size": ..., "counts": ...}'),
}

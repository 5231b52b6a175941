"""COCO instance files: one reader for the checks, training (loco_det/data/coco_loader.py), evaluation and analysis.

All of them read the same, so that the evaluation accepts every file that the check accepted before the training.
"""

import contextlib
import gc
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from pycocotools.coco import COCO

from pretrain.files.image_folders import expect_file

LISTS = ("images", "categories", "annotations")
EVALUATED = {  # the fields that COCO's metrics of boxes and masks read
    "images": ("id", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
}
KEYPOINTS = ("keypoints", "num_keypoints")
UTF_16 = "UTF-16 text: save it as UTF-8"
BEGINNINGS = {  # first bytes of other files that are given by mistake
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file with git lfs pull",
    b"<": "XML or a web page: convert it to COCO's JSON, or download the file again",
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
}


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Pause Python's garbage collector: among millions of new lists it frees nothing, and triples the time."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


@without_collector()
def read_coco(path: str | os.PathLike[str], lists: Sequence[str] = LISTS) -> dict[str, Any]:
    """Parse a COCO instance file: JSON in UTF-8, with or without a byte order mark.

    Args:
        path: of the file.
        lists: keys whose values must be lists.

    Returns:
        The content; the entries of the lists are not checked.

    Raises:
        FileNotFoundError, IsADirectoryError: if there is no such file.
        ValueError: if it is not JSON in UTF-8, has a duplicate key in an object, or is not COCO's format; one line that
            says what it seems to be instead.
    """
    expect_file(path, "annotation file", "JSON file")
    with open(path, "rb") as f:
        data = f.read()
    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except DuplicateKeyError as error:
        raise ValueError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON{_why_no_json(data, error)}") from None
    if problem := _why_no_coco(content, lists):
        raise ValueError(f"{path} is not a COCO instance file: {problem}")
    return content


class DuplicateKeyError(ValueError):
    """A JSON object has a key more than once; json would silently keep the last value."""


def _without_duplicates(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        where = ", ".join(f"{key} {str(value)[:30]}" for key, value in pairs[:4])
        raise DuplicateKeyError(f"duplicate key {twice!r} in one JSON object ({where}): keep one of them")
    return content


def _why_no_json(data, error):
    """The end of the sentence "... is not JSON": what the file is instead, or where the error is."""
    if not data.strip():
        return ": it is empty"
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    for beginning, what in BEGINNINGS.items():
        if start.startswith(beginning):
            return f" but {what}"
    if b"\0" in data[:4]:
        return f" but {UTF_16}"
    if isinstance(error, UnicodeDecodeError):
        line = data.count(b"\n", 0, error.start) + 1
        return f" in UTF-8: byte 0x{data[error.start]:02x} in line {line}; save it as UTF-8"
    if start[:1] not in (b"{", b"["):
        return f" (YAML?): {error}; COCO's JSON begins with {{"
    if str(error).startswith("Extra data"):
        return f": {error}; turn JSON lines into one object with the lists {', '.join(LISTS)}"
    return f": {error}"


def _why_no_coco(content, lists):
    """What is wrong with parsed JSON; None if it has the lists of COCO's format."""
    needed = f"it needs the lists {', '.join(LISTS)}"
    if isinstance(content, list):
        if content and isinstance(content[0], dict) and "score" in content[0]:
            return f"a list with scores holds detections (COCO's results format), not ground truth; {needed}"
        return f"it is a list; {needed}"
    if not isinstance(content, dict):
        return needed
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    first = first if isinstance(first, dict) else {}
    for key, what in {"segments_info": "panoptic segments", "caption": "captions"}.items():
        if key in first and "bbox" not in first:
            return f"its annotations are {what}; take the instances_*.json of the same data"
    lacking = [part for part in lists if not isinstance(content.get(part), list)]
    if lacking == ["annotations"]:
        return "it has no annotations, like the files of test sets; use one that has them"
    return f"{needed}; not a list: {', '.join(lacking)}" if lacking else None


@without_collector()
def read_ground_truth(path: str | os.PathLike[str], more: Sequence[str] = ()) -> COCO:
    """Read only what the evaluation needs of a COCO instance file.

    pycocotools and hotcoco stop at fields that no metric reads if their types differ from those of COCO's own files
    (``date_captured`` as a number, ``info`` as text). The annotations may be missing, as in the files of test sets.

    Args:
        path: of the file.
        more: further fields of the annotations to keep, such as ``KEYPOINTS``.

    Returns:
        pycocotools' COCO, whose ``dataset`` has only the fields in ``EVALUATED`` and ``more``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :func:`read_coco`; also if an entry is not an object or has no id.
    """
    content = read_coco(path, ("images", "categories"))
    with explained(path):
        return as_coco(evaluated(content, more))


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors that unchecked entries lead to into ValueError with the path of the file.

    Raises:
        ValueError: for KeyError, TypeError and AttributeError.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is wrong: {error}"
        raise ValueError(f"{path}: an entry {what}; tools/check_dataset.py says which") from None


def as_coco(dataset: dict[str, Any]) -> COCO:
    """pycocotools' COCO of a parsed file.

    Raises:
        KeyError, TypeError: if an entry has no ids.
    """
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    return coco


def evaluated(content: dict[str, Any], more: Sequence[str] = ()) -> dict[str, Any]:
    """Reduce a parsed file to the fields in ``EVALUATED``.

    Args:
        content: as :func:`read_coco` returns it; not changed.
        more: further fields of the annotations to keep.

    Returns:
        Content in COCO's format without annotations of unlisted images and without empty segmentations. ``iscrowd`` is
        0 or 1, and RLE masks have only ``size`` and ``counts``.

    Raises:
        KeyError, TypeError, AttributeError: if entries are not COCO's; :func:`explained` turns them into ValueError.
    """
    kept = {part: [_only(entry, EVALUATED[part]) for entry in content[part]] for part in ("images", "categories")}
    fields = (*EVALUATED["annotations"], *more)
    if "annotations" in content:
        known = {image["id"] for image in kept["images"]}
        kept["annotations"] = [_only(a, fields) for a in content["annotations"] if a["image_id"] in known]
    for annotation in kept.get("annotations", ()):
        if type(annotation.get("iscrowd")) is bool:
            annotation["iscrowd"] = int(annotation["iscrowd"])
        mask = annotation.get("segmentation")
        if type(mask) is dict:
            annotation["segmentation"] = _only(mask, ("size", "counts"))
        elif not mask:
            annotation.pop("segmentation", None)
    return kept


def _only(entry, fields):
    return {field: entry[field] for field in fields if field in entry}

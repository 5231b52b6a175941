"""Which version of a data set it is: a hash of its annotations' files."""

import functools
import hashlib
import os
import re
from collections.abc import Iterable

from detectron2.data import MetadataCatalog

from pretrain.files.atomic import sha256_of

from .cityscapes import list_files
from .low_shot import SIZES
from .voc_files import annotation_path, read_split
from .voc_loader import is_voc

LOW_SHOT = re.compile(rf".*_({'|'.join(SIZES)})_seed\d+")  # one seed of a low-shot set stands for all


def version_of(name: str) -> str | None:
    """SHA-256 of a registered data set, in hexadecimal.

    Of COCO's format it is that of the JSON file; a low-shot set has its size behind it, as "...:10pct". Of Cityscapes
    and Pascal VOC it is that of the sorted names of the images and annotations, with the sizes of the annotation files.

    Args:
        name: of the data set.

    Returns:
        None if it is not registered, or in another format.

    Raises:
        OSError, ValueError: if a file is missing or cannot be read.
    """
    if name not in MetadataCatalog.list():
        return None
    metadata = MetadataCatalog.get(name)
    if path := metadata.get("json_file"):
        part = LOW_SHOT.fullmatch(name)
        return version_of_file(path) + (f":{part[1]}" if part else "")
    if metadata.get("evaluator_type") == "cityscapes_instance" and metadata.get("image_dir"):
        files = list_files(metadata.image_dir, metadata.gt_dir)
        return _of_names((os.path.basename(image), polygons) for image, *_, polygons in files)
    if is_voc(name):
        names = dict.fromkeys(read_split(metadata.dirname, metadata.split))
        return _of_names((name, annotation_path(metadata.dirname, name)) for name in names)
    return None


def version_of_file(path: str) -> str:
    """The version of a data set in COCO's format by its JSON file; OSError if it cannot be read."""
    state = os.stat(path)
    return _of_file(os.path.abspath(path), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _of_file(path: str, size: int, changed: int) -> str:
    """SHA-256 of a file; COCO's training annotations take a second, and stay what they are while a process runs."""
    return sha256_of(path)


def _of_names(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of names of images, and names and sizes of their annotation files."""
    lines = sorted(f"{image}\0{os.path.basename(path)}\0{os.path.getsize(path)}\n" for image, path in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

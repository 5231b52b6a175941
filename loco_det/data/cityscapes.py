"""Cityscapes on any version of Detectron2: the module that it imports, and a cache for its slow loader.

Detectron2 resolves the occlusions among the polygons of each image, which takes minutes for the 2,975 training images,
in every process of every run. The result is kept in Detectron2's folder for downloads: ``$FVCORE_CACHE``, or
``~/.torch/iopath_cache``, or a temporary folder if that is not writable. The data set itself may be read-only.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.util
import inspect
import json
import logging
import multiprocessing
import os
import sys
import types
import warnings
import zlib
from pathlib import Path
from typing import Any

import detectron2
import portalocker
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import cityscapes as d2
from detectron2.structures import BoxMode
from detectron2.utils import comm
from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from pretrain.files.atomic import whole_file
from pretrain.processes.lifetime import end_with_parent

logger = logging.getLogger(__name__)

UPSTREAM = "deeplearning.projects.cityscapesApi.cityscapesscripts"
MODULES = ("helpers", "helpers.labels", "evaluation", "evaluation.evalInstanceLevelSemanticLabeling")
SPLITS = ("train", "val", "test")
FEW = 20  # up to this many images, starting processes takes longer than it saves


def alias_cityscapesscripts() -> None:
    """Make ``cityscapesscripts`` importable under the name that newer versions of Detectron2 import.

    Since Detectron2's commit 4823082a (2024-12-19) its loader and evaluator import it as
    ``deeplearning.projects.cityscapesApi.cityscapesscripts``, a name that exists only at Meta. Both names refer to the
    same module objects. If the long name exists, nothing is changed.
    """
    parts = UPSTREAM.split(".")
    if UPSTREAM in sys.modules or importlib.util.find_spec(parts[0]) is not None:
        return
    for count in range(1, len(parts)):
        package = types.ModuleType(".".join(parts[:count]))
        package.__path__ = []
        sys.modules[package.__name__] = package
    for name in ("", *(f".{module}" for module in MODULES)):
        sys.modules[f"{UPSTREAM}{name}"] = importlib.import_module(f"cityscapesscripts{name}")
    for count in range(1, len(parts)):
        setattr(sys.modules[".".join(parts[:count])], parts[count], sys.modules[".".join(parts[: count + 1])])


def cache_cityscapes() -> None:
    """Register :func:`load_cityscapes` as the loader of Detectron2's Cityscapes sets for instance segmentation."""
    for split in SPLITS:
        name = f"cityscapes_fine_instance_seg_{split}"
        if name in DatasetCatalog.list():
            metadata = MetadataCatalog.get(name)
            DatasetCatalog.remove(name)
            DatasetCatalog.register(name, functools.partial(load_cityscapes, metadata.image_dir, metadata.gt_dir))


def load_cityscapes(image_dir: str, gt_dir: str) -> list[dict[str, Any]]:
    """Load a split as Detectron2's ``load_cityscapes_instances`` does from polygons, with a cache.

    The key of an entry of the cache has the names, sizes and times of change of all files, Detectron2's version and the
    code of its loader. An entry is JSON, so that reading it executes no code. It is written atomically, by one process
    while others wait. An entry that cannot be read is replaced, with a warning; if none can be written, a warning says
    so.

    Args:
        image_dir, gt_dir: folders of a split, such as leftImg8bit/train and gtFine/train, with a folder for each city.

    Returns:
        Detectron2's dataset dicts, sorted by file name.

    Raises:
        FileNotFoundError: if there are no images, or an image has no polygons.
        ValueError: if the polygons of an image are not usable; the message names the file.
    """
    alias_cityscapesscripts()
    files = list_files(image_dir, gt_dir)
    path = Path(get_cache_dir(), "loco_det", f"cityscapes_{_key(files)}.json.gz")
    records = _read(path)
    if records is None:
        try:
            with file_lock(str(path)):
                records = _read(path, warn=True)  # another process may have written it while this one waited
                if records is None:
                    records = _load(files)
                    _write(path, records)
        except (OSError, portalocker.exceptions.BaseLockException) as error:
            logger.warning(f"the loaded Cityscapes annotations cannot be cached: {error}")
            records = records or _load(files)
    logger.info(f"Cityscapes: {len(records)} images of {image_dir}")
    return records


def list_files(image_dir: str, gt_dir: str) -> list[tuple[str, str, str, str]]:
    """The (image, instanceIds, labelIds, polygons) paths of each image of a split, sorted.

    Args:
        image_dir, gt_dir: as in :func:`load_cityscapes`.

    Raises:
        FileNotFoundError: if Detectron2 finds no images, or files that are not named as it expects.
    """
    try:
        return sorted(d2._get_cityscapes_files(image_dir, gt_dir))
    except (AssertionError, NotADirectoryError) as error:  # no images, other names, or files beside the city folders
        raise FileNotFoundError(f"{image_dir}: no city folders with *_leftImg8bit.png: {error}") from None


def _key(files):
    digest = hashlib.sha256(f"{detectron2.__version__} {inspect.getsource(d2)}".encode())
    for image, *_, polygons in files:
        found = os.stat(polygons)
        digest.update(f"{image}\0{os.path.abspath(polygons)}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _read(path, warn=False):
    """The records of a cache file; None if it is missing or damaged."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as f:
            records = json.load(f)
        for record in records:
            for annotation in record["annotations"]:
                annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
        return records
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        if warn:
            logger.warning(f"{path} is damaged and will be replaced: {error}")
        return None


def _write(path, records):
    with whole_file(path) as temporary, gzip.open(temporary, "wt", compresslevel=1, encoding="utf-8") as f:
        json.dump(records, f)


def _load(files):
    """The records of all images, read by Detectron2 in several processes with a progress bar; categories from 0 on."""
    from cityscapesscripts.helpers.labels import labels

    classes = [label.id for label in labels if label.hasInstances and not label.ignoreInEval]
    workers = max(1, (os.cpu_count() or 1) // comm.get_local_size()) if len(files) > FEW else 1
    with multiprocessing.Pool(workers, end_with_parent) if workers > 1 else contextlib.nullcontext() as pool:
        found = pool.imap(read_one, files, chunksize=4) if pool else map(read_one, files)
        records = list(tqdm(found, "Cityscapes polygons", len(files), unit="image", disable=None))
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = classes.index(annotation["category_id"])
    return records


def read_one(files: tuple[str, str, str, str]) -> dict[str, Any]:
    """Read the annotations of one image.

    Args:
        files: paths, as :func:`list_files` gives them.

    Returns:
        Detectron2's dataset dict, with Cityscapes' label ids as categories.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: naming the file, if the polygons are not usable.
    """
    alias_cityscapesscripts()  # this may be a spawned process, which does not have it yet
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of shapely, for arguments that Detectron2 uses
        try:
            record = d2._cityscapes_files_to_dict(files, from_json=True, to_polygons=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # json, numpy and shapely raise all kinds for broken polygons
            raise ValueError(f"{files[3]}: {type(error).__name__}: {error}") from None
    for annotation in record["annotations"]:
        annotation["bbox"] = list(annotation["bbox"])  # as it comes back from JSON
    return record

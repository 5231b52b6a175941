"""Cityscapes on Detectron2 of any age: the module it imports, and its slow loader behind a cache.

Detectron2 cuts the polygons of each image against each other, which takes minutes for the 2,975 training images, in
every process of every run. What comes out is kept in the folder that Detectron2 keeps its downloads in:
``$FVCORE_CACHE``, or ``~/.torch/iopath_cache``, or where that cannot be written a temporary folder; the data may be
read-only.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib
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
FEW = 20  # images that are not worth starting processes for


def alias_cityscapesscripts():
    """Make ``cityscapesscripts`` importable under the name that newer versions of Detectron2 import.

    Since upstream's commit 4823082a (2024-12-19) the loader and the evaluator import it as
    ``deeplearning.projects.cityscapesApi.cityscapesscripts``, which exists at Detectron2's owner only. Both names lead
    to the same modules, so that what is set in one is set in the other. Where the long name exists it is left alone.
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


def cache_cityscapes():
    """Have Detectron2's registered Cityscapes sets for instance segmentation loaded by :func:`load_cityscapes`."""
    for split in SPLITS:
        name = f"cityscapes_fine_instance_seg_{split}"
        if name in DatasetCatalog.list():
            metadata = MetadataCatalog.get(name)
            DatasetCatalog.remove(name)
            DatasetCatalog.register(name, functools.partial(load_cityscapes, metadata.image_dir, metadata.gt_dir))


def load_cityscapes(image_dir, gt_dir):
    """As Detectron2's ``load_cityscapes_instances`` from polygons; what was loaded once is read from the cache.

    An entry belongs to the names, sizes and times of change of all files, and to Detectron2's version and its loader's
    code. It is JSON, so that reading it runs nothing; it is written whole or not at all, by one process while others
    wait; one that cannot be read is made anew with a warning, and where none can be written that is a warning too.

    Args:
        image_dir, gt_dir: folders of a split, such as leftImg8bit/train and gtFine/train, with a folder for each city.

    Returns:
        list of dict: in Detectron2's format.

    Raises:
        FileNotFoundError: if there are no images, or an image has no polygons.
        ValueError: if the polygons of an image cannot be used; the message names the file.
    """
    alias_cityscapesscripts()
    files = list_files(image_dir, gt_dir)
    path = Path(get_cache_dir(), "loco_det", f"cityscapes_{_key(files)}.json.gz")
    records = _read(path)
    if records is None:
        try:
            with file_lock(str(path)):
                records = _read(path, warn=True)  # another process may have written it meanwhile
                if records is None:
                    records = _load(files)
                    _write(path, records)
        except (OSError, portalocker.exceptions.BaseLockException) as error:
            logger.warning(f"the loaded Cityscapes annotations cannot be kept for the next time: {error}")
            records = records or _load(files)
    logger.info(f"Cityscapes: {len(records)} images of {image_dir}")
    return records


def list_files(image_dir, gt_dir):
    """Detectron2's list of (image, instanceIds, labelIds, polygons) paths; FileNotFoundError if it is empty."""
    try:
        return sorted(d2._get_cityscapes_files(image_dir, gt_dir))
    except (AssertionError, NotADirectoryError) as error:  # no images, oddly named ones or loose files
        raise FileNotFoundError(f"{image_dir}: no city folders with *_leftImg8bit.png: {error}") from None


def _key(files):
    digest = hashlib.sha256(f"{detectron2.__version__} {inspect.getsource(d2)}".encode())
    for image, *_, polygons in files:
        found = os.stat(polygons)
        digest.update(f"{image}\0{os.path.abspath(polygons)}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _read(path, warn=False):
    """The records of a cache file; None if it is not there or damaged."""
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
            logger.warning(f"{path} is damaged and made anew: {error}")
        return None


def _write(path, records):
    """Whole or not at all."""
    with whole_file(path) as temporary, gzip.open(temporary, "wt", compresslevel=1, encoding="utf-8") as f:
        json.dump(records, f)


def _load(files):
    """Detectron2's own reading of every image, in several processes with a progress bar, its categories from 0 on."""
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


def read_one(files):
    """Detectron2's record of one image, categories by Cityscapes' ids; ValueError, with the file, if it cannot be."""
    alias_cityscapesscripts()  # in a process of its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # shapely's, of arguments that Detectron2 uses
        try:
            record = d2._cityscapes_files_to_dict(files, from_json=True, to_polygons=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # anything that broken polygons lead to, in json, numpy or shapely
            raise ValueError(f"{files[3]}: {type(error).__name__}: {error}") from None
    for annotation in record["annotations"]:
        annotation["bbox"] = list(annotation["bbox"])  # as JSON gives it back
    return record

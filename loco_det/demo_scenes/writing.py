"""Generated scenes as files, in the layouts that the project reads: image folder, COCO, Cityscapes and Pascal VOC.

    ROOT/demo.json                                        the arguments and the version of the generator
    ROOT/unlabeled/000000.jpg ...                         for pretraining
    ROOT/coco/{train,val}/000000.jpg ...
    ROOT/coco/annotations/instances_{train,val}.json
    ROOT/cityscapes/leftImg8bit/{train,val}/CITY/CITY_000000_000000_leftImg8bit.png
    ROOT/cityscapes/gtFine/{train,val}/CITY/CITY_000000_000000_gtFine_{instanceIds,labelIds}.png, _polygons.json
    ROOT/voc/VOC{2007,2012}/{JPEGImages/000000.jpg,Annotations/000000.xml} ...
    ROOT/voc/VOC2007/ImageSets/Main/{trainval,test}.txt
    ROOT/voc/VOC2012/ImageSets/Main/trainval.txt

CITY is "demotrain" or "demoval". Each of VOC's two years has as many training images as the other layouts. VOC's layout
is made only if it is asked for. No two of the streams share a scene. The COCO masks are polygons, or RLE where
polygons are not enough (the holes of a bicycle's wheels), so Detectron2 needs INPUT.MASK_FORMAT "bitmask".

The bytes depend on the arguments only, not on the number of processes. Other versions of numpy or OpenCV, or another
kind of processor, may round differently.
"""

import glob
import json
import operator
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pretrain.files.atomic import make_folder, missing_folders, remove_empty, write_json, write_whole
from pretrain.processes.lifetime import is_running
from pretrain.processes.signals import leave_on

from .layouts import coco_dataset, write_cityscapes, write_coco_image, write_image, write_voc
from .pictograms import CLASSES
from .scenes import draw_scene
from .workers import ENDING, parallel_map

LAYOUTS = ("unlabeled", "coco", "cityscapes", "voc")
USUAL = LAYOUTS[:3]
VOC_SETS = (("2007", "trainval", "num_train"), ("2007", "test", "num_val"), ("2012", "trainval", "num_train"))
VERSION = 1  # of the generator: raise it when the same arguments would give other bytes
MANIFEST = "demo.json"


def make_demo_data(
    root: str | os.PathLike[str],
    seed: int = 0,
    num_unlabeled: int = 1000,
    num_train: int = 200,
    num_val: int = 100,
    size: Sequence[int] = (160, 192),
    workers: int | None = None,
    layouts: Sequence[str] = USUAL,
) -> bool:
    """Write the demo data to ``root``, all or nothing: it is built in a folder beside it, which is renamed at the end.

    SIGTERM and SIGHUP leave nothing behind. Leftovers of a killed call are removed by the next one.

    Args:
        root: folder to create, with its parents.
        seed: not negative.
        num_unlabeled: images in the unlabeled folder.
        num_train: training images of the COCO layout, and as many different ones of the Cityscapes layout and of each
            year of the VOC layout.
        num_val: the same for validation.
        size: (height, width) of the images in pixels, 64 to 2048 each.
        workers: processes; None for one per processor core. With more than one, a script that calls this needs the
            usual ``if __name__ == "__main__":`` guard.
        layouts: which of ``LAYOUTS`` to write.

    Returns:
        True if the data was written, False if ``root`` already holds exactly this data.

    Raises:
        ValueError: if an argument is out of range or ``root`` holds anything else.
        OSError: if writing fails; it names ``root``.
        Terminated: on SIGTERM and SIGHUP unless they are ignored; a SystemExit.
    """
    given, root = root, Path(root).resolve()
    asked = _check(seed, num_unlabeled, num_train, num_val, size, layouts)
    workers = os.cpu_count() or 1 if workers is None else _integer("workers", workers, 1)
    _remove_leftovers(root)
    if _already_there(root, asked):
        return False
    made = missing_folders(root.parent)
    try:
        with leave_on(*ENDING):
            _build(root, asked, workers)
    except OSError as error:
        if not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(given)) from error  # and not a file that is gone again
    finally:
        remove_empty(made)
    return True


def _build(root, asked, workers):
    make_folder(root.parent)
    building = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        building.mkdir()
        with parallel_map(workers) as run:
            for layout in asked["layouts"]:
                _write_layout(layout, building, asked, run)
        write_json(building / MANIFEST, asked, indent=1)
        os.replace(building, root)  # replaces an empty folder too
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _remove_leftovers(root):
    """Remove the folders that processes were building beside ``root`` when they were killed."""
    for path in root.parent.glob(f".{glob.escape(root.name)}.*.tmp"):
        pid = path.name.removeprefix(f".{root.name}.").removesuffix(".tmp")
        if pid.isdigit() and (int(pid) == os.getpid() or not is_running(int(pid))):
            shutil.rmtree(path, ignore_errors=True)


def _integer(name, value, low, high=None):
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {limits}, not {value}")
    return value


def _check(seed, num_unlabeled, num_train, num_val, size, layouts):
    """The arguments as the manifest keeps them; ValueError for the first one that is wrong."""
    unknown = [name for name in layouts if name not in LAYOUTS]
    if unknown or not layouts or isinstance(layouts, str):
        raise ValueError(f"layouts must be some of {', '.join(LAYOUTS)}, not {unknown or layouts!r}")
    if np.shape(size) != (2,):
        raise ValueError(f"size must be a (height, width) pair, not {size!r}")
    return {
        "generator": "loco-det demo scenes",
        "classes": list(CLASSES),
        "version": VERSION,
        "seed": _integer("seed", seed, 0),
        "num_unlabeled": _integer("num_unlabeled", num_unlabeled, 1),
        "num_train": _integer("num_train", num_train, 1),
        "num_val": _integer("num_val", num_val, 1),
        "size": [_integer("height", size[0], 64, 2048), _integer("width", size[1], 64, 2048)],
        "layouts": [name for name in LAYOUTS if name in layouts],
    }


def _already_there(root, asked):
    """True if root holds exactly this data, False if it is free; ValueError if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = "remove it or choose another folder"
    if not (root / MANIFEST).is_file():
        raise ValueError(f"{root} exists and is not demo data: {advice}")
    try:
        found = json.loads((root / MANIFEST).read_text())
        different = [key for key in asked if found.get(key) != asked[key]]
    except (ValueError, AttributeError):
        raise ValueError(f"{root / MANIFEST} cannot be read: {advice}") from None
    if different:
        changes = ", ".join(f"{key} {found.get(key)} there, {asked[key]} asked for" for key in different)
        raise ValueError(f"{root} holds other demo data ({changes}): {advice}")
    return True


def _write_layout(layout, root, asked, run):
    folder = root / layout
    folder.mkdir()
    if layout == "unlabeled":
        _scenes(write_image, folder, layout, asked["num_unlabeled"], asked, run)
    if layout == "voc":
        _write_voc(folder, asked, run)
    for split in ("train", "val"):
        stream, count = f"{layout}_{split}", asked[f"num_{split}"]
        if layout == "coco":
            (folder / split).mkdir()
            (folder / "annotations").mkdir(exist_ok=True)
            records = _scenes(write_coco_image, folder / split, stream, count, asked, run)
            text = json.dumps(coco_dataset(records, asked["size"]))
            write_whole(folder / "annotations" / f"instances_{split}.json", text)
        elif layout == "cityscapes":
            for kind in ("leftImg8bit", "gtFine"):
                (folder / kind / split / f"demo{split}").mkdir(parents=True)
            _scenes(partial(write_cityscapes, split=split), folder, stream, count, asked, run)


def _write_voc(root, asked, run):
    """The sets of both years; those of one year share its folders, and so the names of their images go on counting."""
    used = dict.fromkeys(("2007", "2012"), 0)
    for year, split, key in VOC_SETS:
        folder, first, count = root / f"VOC{year}", used[year], asked[key]
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        _scenes(partial(_write_voc_scene, first), folder, f"voc_{year}_{split}", count, asked, run)
        names = "".join(f"{first + index:06d}\n" for index in range(count))
        write_whole(folder / "ImageSets" / "Main" / f"{split}.txt", names)
        used[year] += count


def _write_voc_scene(first, scene, folder, index):
    write_voc(scene, folder, first + index)


def _scenes(write, folder, stream, count, asked, run):
    """Call ``write(scene, folder, index)`` for each scene of a stream; the results, in order."""
    job = partial(_one_scene, write, folder, asked["seed"], stream, tuple(asked["size"]))
    return list(tqdm(run(job, range(count)), total=count, desc=f"demo scenes, {stream}", unit="scene", disable=None))


def _one_scene(write, folder, seed, stream, size, index):
    return write(draw_scene(seed, stream, index, size), folder, index)

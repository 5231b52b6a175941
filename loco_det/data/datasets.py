"""Registration of custom data in COCO's format, and checks of all data sets before training."""

import functools
import logging
import os
import shlex

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from pretrain.files.image_folders import expect_file, expect_folder

from .checks.cityscapes import check_cityscapes
from .checks.coco import check_coco
from .checks.findings import Report
from .checks.kinds import KINDS
from .checks.voc import check_voc
from .cityscapes import alias_cityscapesscripts, cache_cityscapes
from .coco_loader import load_coco, use_own_reader
from .held_out import FIT, hold_out
from .low_shot import register_low_shot
from .voc_loader import is_voc, use_voc_reader

logger = logging.getLogger(__name__)


def prepare_datasets(cfg: CfgNode, eval_only: bool = False) -> None:
    """Register the custom data set, if there is one, and check every data set that the config names.

    Args:
        cfg: the Detectron2 config, not frozen. For custom data DATASETS.TRAIN and TEST, MODEL.ROI_HEADS.NUM_CLASSES
            and INPUT.MASK_FORMAT are set; with DATASETS.HELD_OUT, DATASETS.TRAIN and TEST. With MODEL.MASK_ON False
            masks are neither checked nor loaded.
        eval_only: whether the detector is evaluated only: data to train on are not read, and may be gone.

    Raises:
        FileNotFoundError: if annotations or images are missing.
        ValueError: if a data set is not registered, its annotations have errors, its number of classes differs from the
            config's, or DATASETS.HELD_OUT cannot be drawn.
    """
    register_low_shot()
    alias_cityscapesscripts()
    cache_cityscapes()
    use_own_reader(cfg.MODEL.MASK_ON)
    use_voc_reader()
    options = {"masks": cfg.MODEL.MASK_ON, "allow_outside": cfg.DATASETS.ALLOW_OUTSIDE}
    held_out = cfg.DATASETS.HELD_OUT
    if not 0 <= held_out < 100:
        raise ValueError(f"DATASETS.HELD_OUT is {held_out}, but must be a percentage from 0 to 99")
    _register_custom(cfg, options, ("TEST",) if eval_only and not held_out else ("TRAIN", "TEST"))
    if held_out:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(name.removesuffix(FIT) for name in cfg.DATASETS.TRAIN), ()
    for name in (*(() if eval_only and not held_out else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
        classes, has_rle = _check_registered(name, options)
        if has_rle and name in cfg.DATASETS.TRAIN:
            cfg.INPUT.MASK_FORMAT = "bitmask"
        if classes and classes != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ValueError(
                f"data set {name} has {classes} classes, MODEL.ROI_HEADS.NUM_CLASSES is "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}: set it to {classes}"
            )
    if held_out:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = hold_out(cfg.DATASETS.TRAIN, held_out)


def _check_registered(name, options):
    """Check a registered data set; its number of classes, 0 if unknown, and whether any object has an RLE mask."""
    if name not in MetadataCatalog.list():
        raise ValueError(f"DATASETS: {name!r} is not a registered data set")
    metadata = MetadataCatalog.get(name)
    for path in filter(
        None, (metadata.get(key) for key in ("json_file", "image_root", "image_dir", "gt_dir", "dirname"))
    ):
        if not os.path.exists(path):
            root = os.environ.get("DETECTRON2_DATASETS", "datasets (its default)")
            root += "" if os.path.isabs(path) else f" in the folder {os.getcwd()}"
            raise FileNotFoundError(
                f"data set {name}: {path} is not there; DETECTRON2_DATASETS is {root} and has to be the folder "
                "that holds coco/, cityscapes/, or VOC2007/ and VOC2012/"
            )
    if metadata.get("json_file"):
        classes, has_rle = quick_check(metadata.json_file, metadata.image_root, name, **options)
        return len(classes), has_rle
    if metadata.get("evaluator_type") == "cityscapes_instance" and metadata.get("image_dir"):
        report = check_cityscapes(metadata.image_dir, metadata.gt_dir, full=False)
        _stop_on_errors(report, metadata.image_dir, name)
    if is_voc(name):
        _check_voc(name, metadata, options)
    return len(metadata.get("thing_classes") or []), False


def _check_voc(name, metadata, options):
    """Check a set in VOC's layout, in the main process, which gives the result to the others."""
    if options["masks"]:
        raise ValueError(f"data set {name} has boxes, no masks: set MODEL.MASK_ON False")
    report = None
    if comm.is_main_process():
        allowed = {"allow_outside": options["allow_outside"]}
        report = check_voc(metadata.dirname, metadata.split, metadata.thing_classes, name, full=False, **allowed)
    _stop_on_errors(comm.all_gather(report)[0], metadata.dirname, name + " --allow-outside" * options["allow_outside"])


def _register_custom(cfg, options, splits):
    custom, names = cfg.DATASETS.CUSTOM, {}
    for split in splits:
        path, images = custom[f"{split}_JSON"], custom[f"{split}_IMAGES"]
        if bool(path) != bool(images):
            raise ValueError(f"DATASETS.CUSTOM.{split}_JSON and DATASETS.CUSTOM.{split}_IMAGES go together: set both")
        if path:
            keys = f"DATASETS.CUSTOM.{split}_JSON", f"DATASETS.CUSTOM.{split}_IMAGES"
            names[split], has_rle = quick_check(path, images, **options, keys=keys)
            if has_rle:  # Detectron2's polygon format cannot hold RLE masks
                cfg.INPUT.MASK_FORMAT = "bitmask"
    if not custom.TRAIN_JSON and not custom.TEST_JSON:
        return
    if len({tuple(classes.items()) for classes in names.values()}) > 1:
        raise ValueError(f"{custom.TRAIN_JSON} and {custom.TEST_JSON} list different categories")
    for split in names:
        name = f"{custom.NAME}_{split.lower()}"
        if name in MetadataCatalog.list():
            raise ValueError(f"DATASETS.CUSTOM.NAME {custom.NAME}: {name} is registered already; choose another")
        path, images = custom[f"{split}_JSON"], custom[f"{split}_IMAGES"]
        DatasetCatalog.register(name, functools.partial(load_coco, path, images, name, cfg.MODEL.MASK_ON))
        MetadataCatalog.get(name).set(json_file=path, image_root=images, evaluator_type="coco")
    cfg.DATASETS.TRAIN = (f"{custom.NAME}_train",) if custom.TRAIN_JSON else ()
    cfg.DATASETS.TEST = (f"{custom.NAME}_test",) if "TEST" in names else ()
    if names:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(next(iter(names.values())))
    cfg.PUBLISHED.ROW, cfg.PUBLISHED.BOX_AP, cfg.PUBLISHED.MASK_AP = "", 0.0, 0.0  # they are for the config's data


def quick_check(
    path: str,
    images: str,
    name: str | None = None,
    masks: bool = True,
    allow_outside: bool = False,
    keys: tuple[str, str] = ("", ""),
) -> tuple[dict[int, str], bool]:
    """The part of :func:`loco_det.data.checks.coco.check_coco` that takes seconds.

    Each file is checked once, by the main process, which gives the result to the others.

    Args:
        path: the JSON file.
        images: folder that its file names are relative to.
        name: of the data set, for messages.
        masks, allow_outside: as in :func:`loco_det.data.checks.coco.check_coco`.
        keys: of the config that name the file and the folder, for messages.

    Returns:
        {category id: name}, in order of the ids, which is the order of the classes; and whether any object other than a
        crowd region has an RLE mask.

    Raises:
        FileNotFoundError: if the file or the folder is missing.
        ValueError: if there are errors; one line with the first of them.
    """
    expect_folder(images, key=keys[1])
    expect_file(path, "annotation file", "JSON file", keys[0])
    state = os.stat(path)
    key = os.path.abspath(path), os.path.abspath(images), state.st_size, state.st_mtime_ns, masks, allow_outside
    new = key not in _CHECKED
    if new:
        report = None
        if comm.is_main_process():
            report, _ = check_coco(path, images, full=False, masks=masks, allow_outside=allow_outside)
        _CHECKED[key] = comm.all_gather(report)[0]
    arguments = name or shlex.join(("--json", path, "--images", images))
    arguments += "" if masks else " --boxes-only"
    _stop_on_errors(_CHECKED[key], path, arguments + " --allow-outside" * allow_outside, new)
    return _CHECKED[key].classes, _CHECKED[key].has_rle


# {(file, folder, size, time of change, options): report}: the low-shot sets, for example, share one file
_CHECKED: dict[tuple, Report] = {}


def _stop_on_errors(report, path, arguments, warn=True):
    """Raise ValueError with the first kind of errors; log the kinds of warnings, if ``warn``."""
    command = f"python tools/check_dataset.py {arguments}"
    errors, warnings = report.of("error"), report.of("warning")
    if errors:
        more = f" There are {len(errors) - 1} more kinds of errors." if len(errors) > 1 else ""
        raise ValueError(f"{path}: {report.sentence(next(iter(errors)))}.{more} For all of them: {command}")
    if warnings and warn:
        kinds = ", ".join(f"{KINDS[kind].what} ({found.count})" for kind, found in warnings.items())
        logger.warning(f"{path}: {kinds}: see {command}")

"""Features of a frozen backbone on the disk, a file for each image: computed once, for all seeds and learning rates."""

import contextlib
import hashlib
import logging
import math
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data import transforms as T

from pretrain.engine.progress import with_progress
from pretrain.files.atomic import named_errors, temporary_name
from pretrain.files.lock import lock_folder, unlock_folder
from pretrain.files.safe_load import checksum, read_own
from pretrain.processes.loader import Loader

from ..data.mapper import ImageMapper
from ..modeling.light_detector import LightDetector
from ..modeling.packed import Packed, pack

logger = logging.getLogger(__name__)
FORMAT = "loco-det feature maps 1"
MARGIN = 2048  # bytes of a file beside the values, in each stage

Stored = tuple[dict[str, Packed], tuple[int, int]]  # stage -> features; height and width of the resized image


class FeatureStore:
    """The features of images by one backbone at one size, from a folder.

    A file belongs to its image by the path, the size and the modification time of the image, so that data sets that
    share images, as a held-out part does, share their features. The folder of a backbone is named by a hash of its
    tensors and its layers, of the stages, and of all that makes pixels. Files are written whole, and checksums are
    verified when they are read: damaged ones are computed anew.
    """

    def __init__(self) -> None:
        self._known: dict[Path, Stored] = {}
        self.folder = Path()

    def fill(self, cfg: CfgNode, model: LightDetector, records: Sequence[dict[str, Any]], mirrored: bool) -> None:
        """Read the features of images, and compute and write what is missing. Another process that does so with the
        same backbone is waited for.

        Args:
            cfg: the config. MODEL.LIGHT_HEAD.FEATURES is the folder, ``features`` in OUTPUT_DIR if it is empty.
            model: with the backbone's weights, on its device.
            records: dataset dicts of the images.
            mirrored: whether the features of the mirrored images are needed, too.

        Raises:
            OSError: if an image cannot be read, a file cannot be written, or the disk is too small.
            ValueError: if an image is damaged, or the features are not finite.
        """
        base = cfg.MODEL.LIGHT_HEAD.FEATURES or os.path.join(cfg.OUTPUT_DIR, "features")
        self.folder = Path(base, key_of(cfg, model)[:16])
        with _locked(self.folder):
            missing = [record for record in records if not self._has(record, mirrored)]
            if known := len(records) - len(missing):
                logger.info(f"features of {known} images are read from {self.folder}")
            if missing:
                needed = sum(_bytes(model, record, cfg) for record in missing) * (1 + mirrored)
                self._refuse_full(needed, len(missing), ", ".join(model.head_in_features))
                self._compute(cfg, model, missing, mirrored)

    def __getitem__(self, place: tuple[dict[str, Any], bool]) -> Stored:
        """The features of an image, by its dataset dict and whether it is mirrored; KeyError if they were not filled
        in."""
        return self._known[self._path(*place)]

    def _path(self, record, mirrored):
        path = os.path.abspath(record["file_name"])
        state = os.stat(path)
        name = f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0{mirrored}"
        return self.folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.pth"

    def _has(self, record, mirrored):
        """Whether the features of an image are there; they are read."""
        return all([self._read(self._path(record, side)) for side in ((False, True) if mirrored else (False,))])

    def _read(self, path):
        if path in self._known:
            return True
        try:
            content = read_own(path)
            if content["format"] != FORMAT:
                raise ValueError("it is of another version")
            height, width = content["size"]
            self._known[path] = {name: Packed(*part) for name, part in content["stages"].items()}, (height, width)
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError) as error:
            logger.warning(f"{path} is computed anew: {' '.join(str(error).split())}")
            return False
        return True

    def _refuse_full(self, needed, images, stages):
        free = shutil.disk_usage(self.folder).free
        text = f"features of {images} images ({stages}): {needed / 1e6:,.0f} MB in {self.folder}"
        if needed > free:
            raise OSError(
                f"{text}, which has {free / 1e6:,.0f} MB left: name another folder with MODEL.LIGHT_HEAD.FEATURES, or "
                "fewer images with MODEL.LIGHT_HEAD.TRAIN_IMAGES and TEST_IMAGES"
            )
        logger.info(f"{text}, {free / 1e6:,.0f} MB are free")

    def _compute(self, cfg, model, records, mirrored):
        loader = Loader(
            MapDataset(DatasetFromList(list(records), copy=False), ImageMapper(cfg, is_train=False)),
            batch_size=None,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            generator=torch.Generator(),  # the start of a pass draws from it, not from the run's generator
        )
        for record in with_progress(loader, len(records), "features"):
            image = record["image"]
            sides = (False, True) if mirrored else (False,)
            features = model.extract(torch.stack([image.flip(2) if side else image for side in sides]))
            for k, side in enumerate(sides):
                stages = {name: pack(maps[k].cpu()) for name, maps in features.items()}
                self._write(self._path(record, side), stages, tuple(image.shape[1:]))

    def _write(self, path, stages, size):
        content = {"format": FORMAT, "size": size, "stages": {name: tuple(part) for name, part in stages.items()}}
        temporary = temporary_name(path)
        with named_errors(path):  # not synced: after a power failure the checksum says what is lost
            torch.save(content, temporary)
            os.replace(temporary, path)
        self._known[path] = stages, size
        self._read_back(path)

    def _read_back(self, path):
        """Keep what is mapped to the file in place of what is in memory."""
        del self._known[path]
        self._read(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A context that has a folder's lock; whoever holds it is waited for."""
    lock_folder(folder, waiting=lambda owner: logger.info(f"{folder}: another process{owner} computes features there"))
    try:
        yield
    finally:
        unlock_folder(folder)


def key_of(cfg: CfgNode, model: LightDetector) -> str:
    """SHA-256, in hexadecimal, of all that the features of an image depend on.

    Args:
        cfg: the config, for the size and the format of images.
        model: with the backbone's weights.
    """
    weights: Mapping[str, Any] = {name: part.cpu().numpy() for name, part in model.backbone.state_dict().items()}
    size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT, cfg.INPUT.get("EXACT_RESIZE", False)
    pixels = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    parts = FORMAT, checksum(weights), str(model.backbone), model.strides, size, pixels
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _bytes(model: LightDetector, record: dict[str, Any], cfg: CfgNode) -> int:
    """The size of an image's file."""
    height, width = resized(record["height"], record["width"], cfg)
    height, width = model.padded(height, width)
    total = 0
    for name, stride in model.strides.items():
        total += model.channels[name] * (math.ceil(height / stride) * math.ceil(width / stride) + 8) + MARGIN
    return total


def resized(height: int, width: int, cfg: CfgNode) -> tuple[int, int]:
    """Height and width of an image of this size at INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, or its own size if that is
    0."""
    if not cfg.INPUT.MIN_SIZE_TEST:
        return height, width
    return T.ResizeShortestEdge.get_output_shape(height, width, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


class FeatureMapper(ImageMapper):
    """From a dataset dict to what :class:`LightDetector` takes, with features in place of the image.

    Training images are mirrored at random if INPUT.RANDOM_FLIP is "horizontal".
    """

    def __init__(self, cfg: CfgNode, store: FeatureStore, is_train: bool) -> None:
        """
        Args:
            cfg: the config.
            store: filled before the first image is asked for.
            is_train: whether objects are needed.
        """
        super().__init__(cfg, is_train=is_train)
        self.store, self.mirrors = store, is_train and mirrors(cfg)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: of one image, in Detectron2's format; not changed.

        Returns:
            A dict with "features", "image_size" and, in training, "instances".
        """
        mirrored = self.mirrors and random.random() < 0.5
        features, size = self.store[dataset_dict, mirrored]
        mapped = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        mapped |= {"features": features, "image_size": size}
        if self.is_train:
            steps: list[T.Transform] = [T.ResizeTransform(dataset_dict["height"], dataset_dict["width"], *size)]
            steps += [T.HFlipTransform(size[1])] if mirrored else []
            mapped["annotations"] = dataset_dict.get("annotations", [])
            self._transform_annotations(mapped, T.TransformList(steps), size)
        return mapped


def mirrors(cfg: CfgNode) -> bool:
    """Whether training images are mirrored.

    Raises:
        ValueError: if INPUT.RANDOM_FLIP is neither "horizontal" nor "none", for which there are no features.
    """
    if cfg.INPUT.RANDOM_FLIP not in ("horizontal", "none"):
        raise ValueError(f"INPUT.RANDOM_FLIP {cfg.INPUT.RANDOM_FLIP!r}: the light head takes horizontal or none")
    return cfg.INPUT.RANDOM_FLIP == "horizontal"

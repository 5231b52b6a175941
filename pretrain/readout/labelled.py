"""Labelled images in one folder per class, and their views for evaluation."""

import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.utils.data import Dataset

from ..files.image_folders import expect_folder, list_classes, list_images
from ..files.images import UNREADABLE, image_info, read_image

logger = logging.getLogger(__name__)
LOOKED_AT = 200  # number of images whose size is read; opening all of ImageNet would take minutes


class Labelled(NamedTuple):
    """Images and their classes: ``labels[i]`` is the index in ``class_names`` of the image ``paths[i]``."""

    paths: list[str]
    labels: list[int]
    class_names: list[str]


def list_labelled(folder: str, class_names: list[str] | None = None, key: str = "") -> Labelled:
    """List the images of a folder with one sub-folder per class (the convention of torchvision's ImageFolder).

    Args:
        folder: its path.
        class_names: the classes that labels index, of another such folder; None: the sub-folders' names, sorted.
        key: of the config that names it, for messages.

    Returns:
        The images, sorted by class and path.

    Raises:
        FileNotFoundError: if the folder does not exist, has no sub-folders, or one of them has no image.
        ValueError: if a class is not in ``class_names``.
    """
    expect_folder(folder, "folder of labelled images", key)
    found = list_classes(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no sub-folders; labelled images lie in one sub-folder for each class")
    class_names = found if class_names is None else class_names
    unknown = [name for name in found if name not in class_names]
    if unknown:
        raise ValueError(f"{folder}: {len(unknown)} classes that the training folder does not have: {_first(unknown)}")
    paths: list[str] = []
    labels: list[int] = []
    for name in found:
        paths += list_images(os.path.join(folder, name))
        labels += [class_names.index(name)] * (len(paths) - len(labels))
    return Labelled(paths, labels, class_names)


def _first(names: Sequence[str]) -> str:
    """The first three names as text, with an ellipsis if there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def labelled_splits(cfg: CfgNode, section: str = "DATASETS") -> tuple[Labelled, Labelled | None]:
    """The images in ``TRAIN`` and ``TEST``.

    Args:
        cfg: node with both keys: KNN of the pretraining config, or DATASETS of a readout's.
        section: its name, for messages.

    Returns:
        Training and test images; None without ``TEST``: each image is classified by the others.

    Raises:
        FileNotFoundError, ValueError: as :func:`list_labelled`; ValueError if there is only one class, or both folders
            are the same.
    """
    if cfg.TEST and os.path.realpath(cfg.TEST) == os.path.realpath(cfg.TRAIN):
        raise ValueError(
            f'TEST {cfg.TEST} is the folder TRAIN itself: name one of other images; in kNN, TEST "" has each image '
            "classified by the others"
        )
    train = list_labelled(cfg.TRAIN, key=f"{section}.TRAIN")
    if len(train.class_names) < 2:
        raise ValueError(f"{cfg.TRAIN}: only one class, {train.class_names[0]}; a readout needs two or more")
    return train, list_labelled(cfg.TEST, train.class_names, f"{section}.TEST") if cfg.TEST else None


def warn_of_images(train: Labelled, test: Labelled | None, crop_size: int) -> None:
    """Warn of classes without test images, and of images that are smaller than their scaled size.

    Args:
        train: of :func:`labelled_splits`.
        test: of :func:`labelled_splits`.
        crop_size: INPUT.CROP_SIZE, in pixels; compared with a sample of the images.
    """
    tested = {*(test or train).labels}
    untested = [name for c, name in enumerate(train.class_names) if c not in tested]
    if untested:
        classes = f"{len(untested)} of {len(train.class_names)} classes"
        logger.warning(f"{classes} have training images but no test images: {_first(untested)}")
    paths = train.paths + (test.paths if test else [])
    sides = {path: _shorter_side(path) for path in paths[:: -(-len(paths) // LOOKED_AT)]}
    scaled = scaled_side(crop_size)
    small = [path for path, side in sides.items() if side and side < scaled]
    if small:
        logger.warning(
            f"{len(small)} of {len(sides)} images looked at are smaller than the {scaled} pixels of INPUT.CROP_SIZE "
            f"{crop_size} and are enlarged, such as {small[0]} with {sides[small[0]]}"
        )


def _shorter_side(path: str) -> int | None:
    """In pixels, from the file's header; None if it is unreadable, which is reported when it is decoded."""
    try:
        return min(image_info(path)[:2])
    except UNREADABLE:
        return None


def hold_out(labelled: Labelled, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hold out a part of each class, to choose hyper-parameters on.

    Args:
        labelled: the images.
        share: of each class, from 0 to below 1. Above 0, a class of two images or more keeps at least one image and
            has at least one held out.
        seed: of the choice, which depends only on it and on the number of images in each class.

    Returns:
        Indices in ``labelled.paths`` of the remaining and of the held-out images, (N,) and (M,) long, ascending.
    """
    labels = torch.tensor(labelled.labels)
    out: list[int] = []
    for c in range(len(labelled.class_names) if share else 0):
        images = (labels == c).nonzero()[:, 0].numpy()
        count = min(max(1, round(share * len(images))), len(images) - 1)
        out += np.random.default_rng([seed, c]).permutation(images)[: max(0, count)].tolist()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[out] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def subset(labelled: Labelled, indices: torch.Tensor) -> Labelled:
    """The images at the given indices, (N,) long."""
    rows = indices.tolist()
    return Labelled([labelled.paths[i] for i in rows], [labelled.labels[i] for i in rows], labelled.class_names)


def scaled_side(size: int) -> int:
    """Pixels of an image's shorter side after scaling, before its central ``size`` pixels are cropped."""
    return round(size * 256 / 224)


def central_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The usual view for evaluation: shorter side scaled to size * 256 / 224, antialiased, then the central square.

    Args:
        image: (H, W, 3) uint8.
        size: side of the crop, in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    height, width = image.shape[:2]
    short, scaled = min(height, width), scaled_side(size)
    y, x = (height - short) // 2, (width - short) // 2  # only this square is resized, because the crop lies in it
    image = image[y : y + short, x : x + short]
    how = cv2.INTER_AREA if short > scaled else cv2.INTER_LINEAR
    image = cv2.resize(image, (scaled, scaled), interpolation=how)
    margin = (scaled - size) // 2
    return image[margin : margin + size, margin : margin + size]


class CentralCrops(Dataset):
    """The :func:`central_crop` of each image file."""

    def __init__(self, paths: Sequence[str], size: int) -> None:
        """
        Args:
            paths: image files.
            size: side of the crop, in pixels.
        """
        self.paths, self.size = paths, size

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | None]:
        """The index, and its (size, size, 3) uint8 view; None if the file is unreadable."""
        try:
            return index, central_crop(read_image(self.paths[index]), self.size)
        except UNREADABLE:
            return index, None


def collate_readable(samples: Sequence[tuple[int, np.ndarray | None]]) -> tuple[list[int], torch.Tensor | None]:
    """Collate the readable images of a batch.

    Args:
        samples: items of :class:`CentralCrops`.

    Returns:
        Indices of the readable images, and their views, (B, 3, H, W) uint8 in channels_last; None without any.
    """
    readable = [(index, view) for index, view in samples if view is not None]
    if not readable:
        return [], None
    indices, views = zip(*readable, strict=True)
    return list(indices), torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)

"""Labelled images: one folder a class, and the views of them that an evaluation looks at."""

import logging
import os
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from ..files.image_folders import list_classes, list_images
from ..files.images import UNREADABLE, image_info, read_image

logger = logging.getLogger(__name__)
LOOKED_AT = 200  # images whose size is read: opening each of ImageNet's would take minutes


class Labelled(NamedTuple):
    """Images and their classes: ``labels[i]`` is the index in ``class_names`` of the image ``paths[i]``."""

    paths: list
    labels: list
    class_names: list


def list_labelled(folder, class_names=None):
    """The images of a folder with one sub-folder for each class (the convention of torchvision's ImageFolder).

    Args:
        folder: path.
        class_names: what the labels index, of another such folder; None: the sub-folders' names in sorted order.

    Returns:
        Labelled: sorted by class and path.

    Raises:
        FileNotFoundError: if there is no such folder, no class in it, or no image in a class.
        ValueError: if a class is not in ``class_names``.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder of labelled images")
    found = list_classes(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no sub-folders; labelled images lie in one sub-folder for each class")
    class_names = found if class_names is None else class_names
    unknown = [name for name in found if name not in class_names]
    if unknown:
        raise ValueError(f"{folder}: {len(unknown)} classes that the training folder does not have: {_first(unknown)}")
    paths, labels = [], []
    for name in found:
        paths += list_images(os.path.join(folder, name))
        labels += [class_names.index(name)] * (len(paths) - len(labels))
    return Labelled(paths, labels, class_names)


def _first(names):
    """The first names, and whether there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def labelled_splits(cfg):
    """What ``TRAIN`` and ``TEST`` name: images with known classes, and images to classify.

    Args:
        cfg: a node with both keys: KNN of the pretraining config, DATASETS of a readout's.

    Returns:
        tuple: (Labelled, Labelled), or (Labelled, None) if every image is to be classified by the others.

    Raises:
        FileNotFoundError, ValueError: as :func:`list_labelled`; ValueError if there is one class only, or both are the
            same folder.
    """
    if cfg.TEST and os.path.realpath(cfg.TEST) == os.path.realpath(cfg.TRAIN):
        raise ValueError(
            f'TEST {cfg.TEST} is the folder TRAIN itself: name one of other images; in kNN, TEST "" has each image '
            "classified by the others"
        )
    train = list_labelled(cfg.TRAIN)
    if len(train.class_names) < 2:
        raise ValueError(f"{cfg.TRAIN}: one class only, {train.class_names[0]}; there is nothing to tell apart")
    return train, list_labelled(cfg.TEST, train.class_names) if cfg.TEST else None


def warn_of_images(train, test, crop_size):
    """Name what the figures of a readout would not tell: classes that are never tested, images that are enlarged.

    Args:
        train, test: of :func:`labelled_splits`.
        crop_size: INPUT.CROP_SIZE, in pixels; a sample of the images is compared with it.
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


def _shorter_side(path):
    """In pixels, by the file's header alone; None if it is unreadable, which whoever decodes it reports."""
    try:
        return min(image_info(path)[:2])
    except UNREADABLE:
        return None


def hold_out(labelled, share, seed):
    """Set aside a part of each class, to choose hyper-parameters on.

    Args:
        labelled: of :func:`list_labelled`.
        share: of each class, from 0 to below 1; of a class with two images or more at least one is set aside and at
            least one is not. 0: none.
        seed: of the choice, which depends on nothing else than it and the number of images in each class.

    Returns:
        tuple: indices in ``labelled.paths`` of the images that remain, and of those set aside; two ascending (N,) long.
    """
    labels, out = torch.tensor(labelled.labels), []
    for c in range(len(labelled.class_names) if share else 0):
        images = (labels == c).nonzero()[:, 0].numpy()
        count = min(max(1, round(share * len(images))), len(images) - 1)
        out += np.random.default_rng([seed, c]).permutation(images)[: max(0, count)].tolist()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[out] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def subset(labelled, indices):
    """The images of some indices, as a Labelled."""
    indices = indices.tolist()
    return Labelled([labelled.paths[i] for i in indices], [labelled.labels[i] for i in indices], labelled.class_names)


def scaled_side(size):
    """To how many pixels an image's shorter side is scaled, of which the central ``size`` are seen."""
    return round(size * 256 / 224)


def central_crop(image, size):
    """The usual view for evaluation: short side to size * 256 / 224, then the central square, antialiased.

    Args:
        image: (H, W, 3) uint8.
        size: side of the result in pixels.

    Returns:
        ndarray: (size, size, 3) uint8.
    """
    height, width = image.shape[:2]
    short, scaled = min(height, width), scaled_side(size)
    y, x = (height - short) // 2, (width - short) // 2  # what is beyond this square is never seen: do not resize it
    image = image[y : y + short, x : x + short]
    how = cv2.INTER_AREA if short > scaled else cv2.INTER_LINEAR
    image = cv2.resize(image, (scaled, scaled), interpolation=how)
    margin = (scaled - size) // 2
    return image[margin : margin + size, margin : margin + size]


class CentralCrops(Dataset):
    """Image files as the views of :func:`central_crop`."""

    def __init__(self, paths, size):
        self.paths, self.size = paths, size

    def __getitem__(self, index):
        """(index, view (size, size, 3) uint8), the view None if the file is unreadable."""
        try:
            return index, central_crop(read_image(self.paths[index]), self.size)
        except UNREADABLE:
            return index, None


def collate_readable(samples):
    """Indices of the readable images of a batch, and their views (B, 3, H, W) uint8 in channels_last."""
    samples = [sample for sample in samples if sample[1] is not None]
    if not samples:
        return [], None
    indices, views = zip(*samples, strict=True)
    return list(indices), torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)

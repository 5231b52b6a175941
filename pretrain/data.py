"""A folder of images as an endless, seeded, resumable stream of two-view batches."""

import itertools
import logging
import os
import warnings

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from .augment import SimCLRView
from .engine.sigterm import start_worker

logger = logging.getLogger(__name__)
# what Pillow raises: SyntaxError on broken PNG files
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
JPEG_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def list_images(folder):
    """All image files below a folder, in sorted order; other files are counted and named in the log.

    Args:
        folder: path of an image folder, with or without sub-folders (of classes, say: they are ignored).

    Returns:
        list[str]: paths.

    Raises:
        FileNotFoundError: if the folder is missing or holds no images.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder of images; set DATASETS.TRAIN")
    images, others, seen = [], [], set()
    for root, dirs, files in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in seen:  # a link to a folder above
            dirs.clear()
            continue
        seen.add(os.path.realpath(root))
        dirs.sort()
        for name in sorted(files):
            (images if name.lower().endswith(EXTENSIONS) else others).append(os.path.join(root, name))
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        logger.info(f"{folder}: {len(others)} files are not images and are left out: {shown}")
    if not images:
        raise FileNotFoundError(f"{folder}: no images ({', '.join(EXTENSIONS)}) in this folder or below it")
    return images


def read_image(path):
    """Decode an image to (H, W, 3) uint8 RGB; raises one of ``UNREADABLE`` if it is truncated or no image.

    A JPEG file's orientation tag is ignored.
    """
    with warnings.catch_warnings(), open(path, "rb") as file:
        warnings.simplefilter("ignore")  # palette images with transparency and the like are still readable
        with Image.open(file) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                file.seek(0)
                pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), JPEG_FLAGS)  # Pillow's, in half the time
                if pixels is not None:  # else the file is truncated: Pillow says so
                    return pixels
            if image.mode.startswith("I;16"):  # Pillow's conversion would clip all above 255, not scale
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ValueError(f"{path}: pixels of unknown range (mode {image.mode})")
            return np.array(image.convert("RGB"))


class TwoViews(Dataset):
    """Images as pairs of views. Indexed by (position in the stream, image): the position seeds the augmentation, so
    that a run is the same whatever the number of workers, and goes on exactly where it was stopped."""

    def __init__(self, images, view, seed):
        """
        Args:
            images: list of paths.
            view: function (image, numpy Generator, 0 or 1) -> (S, S, 3) uint8: its first and its second view.
            seed: int, of the run.
        """
        self.images, self.view, self.seed = images, view, seed

    def __getitem__(self, key):
        """
        Returns:
            tuple: views (2, S, S, 3) uint8, and the list of files that could not be read. An unreadable image is
            replaced by the next one that can be read; if a hundred in a row cannot, OSError is raised.
        """
        position, index = key
        unreadable = []
        while True:
            path = self.images[index]
            try:
                image = read_image(path)
                break
            except UNREADABLE as error:
                unreadable.append(path)
                if len(unreadable) >= min(100, len(self.images)):
                    raise OSError(f"{len(unreadable)} images in a row are unreadable, the last: {path}") from error
                index = (index + 1) % len(self.images)
        rng = np.random.default_rng([self.seed, position])
        return np.stack([self.view(image, rng, which) for which in range(2)]), unreadable


class StreamSampler(Sampler):
    """Endless stream of (position, image) keys: a new permutation of the images in each epoch.

    An epoch is as many whole batches as there are; what is left of the permutation is dropped, because a batch across
    two epochs might hold an image twice, which would be its own negative. Process ``rank`` of ``world_size`` takes
    its slice of each global batch, so that the global batches do not depend on the number of processes.
    """

    def __init__(self, num_images, batch_size, seed, start, rank=0, world_size=1):
        """
        Args:
            num_images: images in an epoch.
            batch_size: images in a global batch.
            seed: of the permutations.
            start: global batches to pass over (the iteration at which a run is resumed).
        """
        self.num_images, self.seed = num_images, seed
        self.batch_size, self.start, self.rank, self.world_size = batch_size, start, rank, world_size

    def __iter__(self):
        epoch, local = None, self.batch_size // self.world_size
        for iteration in itertools.count(self.start):
            now, step = divmod(iteration, self.num_images // self.batch_size)
            if now != epoch:
                epoch = now
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images).tolist()
            first = self.rank * local
            for i in range(first, first + local):
                yield iteration * self.batch_size + i, order[step * self.batch_size + i]


def _collate(samples):
    """Samples to (2B, 3, S, S) uint8 views, all first ones then all second ones, and the unreadable files."""
    views = torch.from_numpy(np.stack([views for views, _ in samples], axis=1)).flatten(0, 1)
    return views.permute(0, 3, 1, 2), [path for _, paths in samples for path in paths]


def build_loader(cfg, images, start, rank=0, world_size=1):
    """The stream of batches, from iteration ``start`` on.

    Args:
        cfg: the config.
        images: list of paths.

    Returns:
        DataLoader: yields (views (2B, 3, S, S) uint8 in channels_last, list of unreadable files). With INPUT.ON_DEVICE
        the views are cropped and flipped only; :class:`DeviceAugment` does the rest.

    Raises:
        ValueError: if the folder has fewer images than a batch (an image would be its own negative), or the batch
            cannot be divided among the processes.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch % world_size:
        raise ValueError(f"SOLVER.IMS_PER_BATCH {batch} cannot be divided among {world_size} processes")
    if len(images) < batch:
        raise ValueError(
            f"{len(images)} images are fewer than SOLVER.IMS_PER_BATCH {batch}: an image would be its own negative; "
            f"set SOLVER.IMS_PER_BATCH to {len(images)} or less"
        )
    workers = cfg.DATALOADER.NUM_WORKERS
    return DataLoader(
        TwoViews(images, SimCLRView(cfg.INPUT, colour=not cfg.INPUT.ON_DEVICE), cfg.SEED),
        batch_size=batch // world_size,
        sampler=StreamSampler(len(images), batch, cfg.SEED, start, rank, world_size),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_worker,
        prefetch_factor=2 if workers else None,
    )

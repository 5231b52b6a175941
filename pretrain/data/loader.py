"""A folder of images as an endless, seeded, resumable stream of two-view batches."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from fvcore.common.config import CfgNode as CN
from torch.utils.data import Dataset, Sampler

from ..files.images import UNREADABLE, read_image
from ..processes.loader import Loader
from .augment import SimCLRView, View


def first_readable(paths: Sequence[str], index: int) -> tuple[np.ndarray, int, list[str]]:
    """An image; in place of one that cannot be read, the next one that can.

    Args:
        paths: of images.
        index: which one.

    Returns:
        tuple: (H, W, 3) uint8 RGB, its own index, and the files before it that could not be read.

    Raises:
        OSError: if a hundred in a row, or all, cannot be read.
    """
    unreadable: list[str] = []
    while True:
        path = paths[index]
        try:
            return read_image(path), index, unreadable
        except UNREADABLE as error:
            unreadable.append(path)
            if len(unreadable) >= min(100, len(paths)):
                raise OSError(f"{len(unreadable)} images in a row are unreadable, the last: {path}") from error
            index = (index + 1) % len(paths)


class TwoViews(Dataset):
    """Images as pairs of views, indexed by (position in the stream, image).

    The position seeds the augmentation: the views do not depend on the number of workers or on where a run resumed.
    """

    def __init__(self, images: Sequence[str], view: View, seed: int) -> None:
        """
        Args:
            images: paths.
            view: makes the views.
            seed: of the run.
        """
        self.images, self.view, self.seed = images, view, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
        """
        Returns:
            Views (2, S, S, 3) uint8 RGB, and the files that could not be read: the next readable image replaces one.

        Raises:
            OSError: if a hundred images in a row, or all of them, cannot be read.
        """
        position, index = key
        image, _, unreadable = first_readable(self.images, index)
        rng = np.random.default_rng([self.seed, position])
        return np.stack([self.view(image, rng, which) for which in range(2)]), unreadable


class StreamSampler(Sampler):
    """Endless stream of (position, image) keys: a new permutation of the images in each epoch.

    An epoch consists of whole batches, and the rest of the permutation is dropped: a batch across two epochs could
    hold an image twice, which would be its own negative. Each process takes its slice of a global batch, so that the
    global batches do not depend on the number of processes.
    """

    def __init__(
        self, num_images: int, batch_size: int, seed: int, start: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """
        Args:
            num_images: images in the folder, at least ``batch_size``.
            batch_size: images in a global batch, a multiple of ``world_size``.
            seed: of the permutations.
            start: global batches to skip (the iteration at which a run is resumed).
            rank: of this process.
            world_size: number of processes.
        """
        self.num_images, self.seed = num_images, seed
        self.batch_size, self.start, self.rank, self.world_size = batch_size, start, rank, world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, local = None, self.batch_size // self.world_size
        for iteration in itertools.count(self.start):
            now, step = divmod(iteration, self.num_images // self.batch_size)
            if now != epoch:
                epoch = now
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images).tolist()
            first = self.rank * local
            for i in range(first, first + local):
                yield iteration * self.batch_size + i, order[step * self.batch_size + i]


def _collate(samples: list[tuple[np.ndarray, list[str]]]) -> tuple[torch.Tensor, list[str]]:
    """Samples as (2B, 3, S, S) uint8 views, all first ones then all second ones, and the unreadable files."""
    views = torch.from_numpy(np.stack([views for views, _ in samples], axis=1)).flatten(0, 1)
    return views.permute(0, 3, 1, 2), [path for _, paths in samples for path in paths]


def build_loader(cfg: CN, images: Sequence[str], start: int, rank: int = 0, world_size: int = 1) -> Loader:
    """The stream of one process's batches, from iteration ``start`` on.

    Args:
        cfg: the config.
        images: paths.
        start: iterations to skip.
        rank: of this process.
        world_size: number of processes.

    Returns:
        Yields (views (2B, 3, S, S) uint8 RGB in channels_last, list of unreadable files). B is SOLVER.IMS_PER_BATCH /
        ``world_size``; the first views of all images come first. With INPUT.ON_DEVICE the views are only cropped and
        flipped, and :class:`.device_augment.DeviceAugment` does the rest.

    Raises:
        ValueError: if there are fewer images than in a batch (an image would be its own negative), or the batch cannot
            be divided among the processes.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    refuse_batch(batch, len(images), world_size)
    workers = cfg.DATALOADER.NUM_WORKERS
    return Loader(
        TwoViews(images, SimCLRView(cfg.INPUT, colour=not cfg.INPUT.ON_DEVICE), cfg.SEED),
        batch_size=batch // world_size,
        sampler=StreamSampler(len(images), batch, cfg.SEED, start, rank, world_size),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=2 if workers else None,
    )


def refuse_batch(batch: int, images: int, world_size: int) -> None:
    """Refuse a batch that the data do not allow.

    Args:
        batch: SOLVER.IMS_PER_BATCH.
        images: number of training images.
        world_size: number of processes that divide a batch.

    Raises:
        ValueError: as :func:`build_loader`.
    """
    if batch % world_size:
        raise ValueError(f"SOLVER.IMS_PER_BATCH {batch} cannot be divided among {world_size} processes")
    if images < batch:
        raise ValueError(
            f"{images} images are fewer than SOLVER.IMS_PER_BATCH {batch}: an image would be its own negative; "
            f"set SOLVER.IMS_PER_BATCH to {images} or less"
        )

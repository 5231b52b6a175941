"""Streams of features to train and test on: cached, or computed from random crops.

Both yield endless, seeded, resumable batches: order and augmentation are functions of SEED and the position.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch.utils.data import Dataset

from ..config import get_cfg as pretraining_cfg
from ..data.augment import SimCLRView
from ..data.loader import StreamSampler, first_readable
from ..processes.loader import Loader
from .features import Features, PooledEncoder, cached_features, pooled_features
from .labelled import Labelled, hold_out, labelled_splits, subset, warn_of_images

logger = logging.getLogger(__name__)


class _Stream:
    """The images of a readout.

    Attributes:
        counts: number of "train", "held_out" and "test" images, and of "classes". Unreadable images are not counted.
            :class:`AugmentedStream` subtracts them at each test; of the training images those that it has met since
            the start or resume.
    """

    def __init__(self, cfg: CfgNode, encoder: PooledEncoder) -> None:
        """
        Args:
            cfg: the readout's config.
            encoder: on MODEL.DEVICE, in eval mode.

        Raises:
            FileNotFoundError, ValueError: as :func:`labelled_splits`; ValueError without DATASETS.TEST, if there are
                fewer training images than a batch has, or if the batch cannot be divided among the processes.
        """
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty: a linear readout needs test images")
        self.cfg, self.encoder = cfg, encoder
        self.train, test = labelled_splits(cfg.DATASETS)
        assert test  # because DATASETS.TEST is not empty
        self.test = test
        if comm.is_main_process():
            warn_of_images(self.train, self.test, cfg.INPUT.CROP_SIZE)
        self.rows, self.held_out = hold_out(self.train, cfg.DATASETS.HELD_OUT, cfg.SEED)
        batch, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
        if batch % world_size:
            raise ValueError(f"SOLVER.IMS_PER_BATCH {batch} cannot be divided among {world_size} processes")
        self.local = batch // world_size
        self._count(len(self.test.paths))

    def _count(self, test: int) -> None:
        train, batch = len(self.rows), self.cfg.SOLVER.IMS_PER_BATCH
        if train < batch:
            raise ValueError(
                f"{train} training images are fewer than SOLVER.IMS_PER_BATCH {batch}: set it to {train} or less"
            )
        classes = len(self.train.class_names)
        self.counts = {"train": train, "held_out": len(self.held_out), "test": test, "classes": classes}

    def _sampler(self, start: int) -> StreamSampler:
        args = self.cfg.SOLVER.IMS_PER_BATCH, self.cfg.SEED, start, comm.get_rank(), comm.get_world_size()
        return StreamSampler(len(self.rows), *args)


class CachedStream(_Stream):
    """Features of the images' central crops, computed once (:func:`cached_features`)."""

    def __init__(self, cfg: CfgNode, encoder: PooledEncoder, weights: Mapping[str, Any]) -> None:
        """
        Args:
            cfg: as :class:`_Stream`.
            encoder: as :class:`_Stream`.
            weights: as :func:`cached_features`.

        Raises:
            FileNotFoundError, ValueError, OSError: as :class:`_Stream` and :func:`cached_features`.
        """
        super().__init__(cfg, encoder)
        lists = [self.train.paths, self.test.paths]
        (self.features, readable), (test, test_readable) = cached_features(encoder, lists, cfg, weights)
        self.labels = torch.tensor(self.train.labels)[readable]
        # Indices of images become rows of features, which unreadable images do not have
        self.rows, self.held_out = (
            torch.isin(readable, chosen).nonzero()[:, 0] for chosen in (self.rows, self.held_out)
        )
        self.tests = {"test": (test, torch.tensor(self.test.labels)[test_readable])}
        if len(self.held_out):
            features = {name: values[self.held_out] for name, values in self.features.items()}
            self.tests["held_out"] = features, self.labels[self.held_out]
        self._count(len(test_readable))

    def batches(self, start: int) -> Iterator[tuple[Features, torch.Tensor]]:
        """
        Args:
            start: number of batches to skip.

        Yields:
            This process's part of a batch, on MODEL.DEVICE: stage name -> (B, C) features, and (B,) long labels.
        """
        order, device = (index for _, index in self._sampler(start)), self.cfg.MODEL.DEVICE
        while True:
            rows = self.rows[list(itertools.islice(order, self.local))]
            yield {name: f[rows].to(device) for name, f in self.features.items()}, self.labels[rows].to(device)

    def test_features(self) -> dict[str, tuple[Features, torch.Tensor]]:
        """Features and (N,) long labels of the "test" images and of any "held_out" ones; complete in process 0."""
        return self.tests


class AugmentedStream(_Stream):
    """Features of random resized crops and flips; for tests, of central crops, computed anew each time."""

    def __init__(self, cfg: CfgNode, encoder: PooledEncoder) -> None:
        """Arguments and errors as of :class:`_Stream`."""
        super().__init__(cfg, encoder)
        self.unreadable: set[str] = set()  # training images that this process has met

    def batches(self, start: int) -> Iterator[tuple[Features, torch.Tensor]]:
        """As :meth:`CachedStream.batches`; raises OSError if a hundred images in a row are unreadable."""
        workers, device = self.cfg.DATALOADER.NUM_WORKERS, self.cfg.MODEL.DEVICE
        loader = Loader(
            RandomCrops(subset(self.train, self.rows), self.cfg),
            batch_size=self.local,
            sampler=self._sampler(start),
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if workers else None,
        )
        for views, labels, unreadable in loader:
            for path in set(unreadable) - self.unreadable:
                logger.warning(f"unreadable image left out: {path}")
            self.unreadable.update(unreadable)
            with torch.no_grad():
                features = self.encoder(views.to(device, non_blocking=True))
            yield features, labels.to(device, non_blocking=True)

    def test_features(self) -> dict[str, tuple[Features, torch.Tensor]]:
        """As :meth:`CachedStream.test_features`; raises OSError if no image is readable."""
        unreadable = set(itertools.chain(*comm.all_gather(sorted(self.unreadable))))
        self.counts["train"] = len(self.rows) - len(unreadable)
        images = {"test": self.test}
        if len(self.held_out):
            images["held_out"] = subset(self.train, self.held_out)
        results = {}
        for name, part in images.items():
            features, readable = pooled_features(self.encoder, part.paths, self.cfg)
            results[name] = features, torch.tensor(part.labels)[readable]
            if comm.is_main_process():  # the others have no features
                self.counts[name] = len(readable)
        return results


class RandomCrops(Dataset):
    """Random resized crop and flip, indexed by (position in the stream, image); the position seeds them."""

    def __init__(self, labelled: Labelled, cfg: CfgNode) -> None:
        """
        Args:
            labelled: images and labels.
            cfg: the readout's config.
        """
        augmentation = pretraining_cfg().INPUT  # its other keys concern colours, which stay
        augmentation.CROP_SIZE, augmentation.CROP_AREA = cfg.INPUT.CROP_SIZE, cfg.INPUT.CROP_AREA
        self.labelled, self.seed = labelled, cfg.SEED
        self.view = SimCLRView(augmentation, colour=False)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, int, list[str]]:
        """
        Args:
            key: position in the stream, and index of the image. An unreadable image is replaced by the next one.

        Returns:
            View (S, S, 3) uint8, its label, and the unreadable files.

        Raises:
            OSError: if a hundred images in a row are unreadable.
        """
        position, index = key
        image, index, unreadable = first_readable(self.labelled.paths, index)
        return (
            self.view(image, np.random.default_rng([self.seed, position]), 0),
            self.labelled.labels[index],
            unreadable,
        )


def _collate(samples: Sequence[tuple[np.ndarray, int, list[str]]]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """(B, 3, S, S) uint8 views in channels_last, (B,) long labels, and the unreadable files."""
    views, labels, unreadable = zip(*samples, strict=True)
    batch = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
    return batch, torch.tensor(labels), list(itertools.chain(*unreadable))

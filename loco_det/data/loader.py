"""Training batches that depend only on the seed, the iteration and the process, so that runs resume exactly."""

import functools
import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm

from pretrain.processes.loader import Loader

from .mapper import ImageMapper

Item = tuple[tuple[int, ...], int]  # the seeds of an image's random transforms, and its index


def build_train_loader(cfg: CfgNode, mapper: ImageMapper | None = None) -> Loader:
    """Detectron2's training loader (TrainingSampler, batches grouped by aspect ratio) that can start at any iteration.

    Args:
        cfg: a Detectron2 config whose SEED is not negative.
        mapper: of dataset dicts; None: :class:`ImageMapper`.

    Returns:
        An endless loader of lists of mapped dataset dicts; its ``batch_sampler`` is :class:`Batches`.

    Raises:
        ValueError: if the batch size is not a multiple of the number of processes.
    """
    world = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world:
        raise ValueError(f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide by {world} processes")
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    wide = [record["width"] > record["height"] for record in records]
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        wide = [True] * len(wide)
    batches = Batches(wide, cfg.SOLVER.IMS_PER_BATCH // world, cfg.SEED, comm.get_rank(), world)
    batches.records = records
    data = MapDataset(DatasetFromList(records, copy=False), mapper or ImageMapper(cfg, is_train=True))
    return Loader(
        SeededItems(data),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # the start of an epoch draws from it, not from the global generator
    )


class Batches(torch.utils.data.Sampler):
    """Endless batches of indices: the stream of Detectron2's TrainingSampler, grouped by aspect ratio as it does.

    Attributes:
        seed: of the order, and of the transforms of each image.
        start: number of batches to skip.
        records: dataset dicts of the images.
    """

    records: Sequence[dict[str, Any]] = ()

    def __init__(self, wide: Sequence[bool], batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        """
        Args:
            wide: for each image, whether it is wider than high; a batch has images of one kind.
            batch_size: of one process.
            seed: of the order, and of the transforms of each image.
            rank, world: rank of this process and world size; the processes take turns on one shuffled stream.
        """
        self.wide, self.batch_size, self.seed, self.rank, self.world = wide, batch_size, seed, rank, world
        self.start = 0

    def __iter__(self) -> Iterator[list[Item]]:
        """
        Yields:
            The items of a batch, for :class:`SeededItems`.
        """
        buckets: tuple[list[int], list[int]] = ([], [])
        count = 0
        for index in itertools.islice(self._stream(), self.rank, None, self.world):
            bucket = buckets[not self.wide[index]]
            bucket.append(index)
            if len(bucket) == self.batch_size:
                count += 1
                if count > self.start:
                    yield [((self.seed, self.rank, count, place), index) for place, index in enumerate(bucket)]
                bucket.clear()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the images' names and sizes and of their objects' classes, boxes and masks, in
        order. Of polygons only the lengths, first and last points count: all points of COCO would take a minute."""
        digest = hashlib.sha256()
        for record in self.records:
            found = record.get("annotations", ())
            objects = [(a["category_id"], a.get("iscrowd"), *a["bbox"], _outline(a.get("segmentation"))) for a in found]
            image = os.path.basename(record["file_name"]), record["width"], record["height"]
            digest.update(repr((image, objects)).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _stream(self):
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(len(self.wide), generator=generator).tolist()


def _outline(segmentation):
    """A cheap summary of a mask that differs from that of other masks."""
    if isinstance(segmentation, dict):
        return segmentation["counts"]
    return [(len(polygon), *polygon[:2], *polygon[-2:]) for polygon in segmentation or ()]


class SeededItems(torch.utils.data.Dataset):
    """A data set whose items are an index and the seeds of the random transforms.

    Python's, numpy's and torch's global generators have the same state afterwards as before.
    """

    def __init__(self, data: Any) -> None:
        """
        Args:
            data: a data set with ``len()`` whose items may draw from the global generators.
        """
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: Item) -> Any:
        seeds, index = item
        states = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):  # without workers this is the training process
                seed_everything(*seeds)
                return self.data[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def seed_everything(*seeds: int) -> None:
    """Seed Python's, numpy's and torch's global generators with one or more integers, none of them negative."""
    words = np.random.SeedSequence(seeds).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))

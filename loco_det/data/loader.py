"""Training batches that are a function of the seed, the iteration and the process: a run can be resumed exactly."""

import functools
import hashlib
import itertools
import os
import random

import numpy as np
import torch
from detectron2.data import DatasetFromList, MapDataset, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm

from pretrain.processes.lifetime import start_worker

from .mapper import ImageMapper


def build_train_loader(cfg):
    """Detectron2's training loader (TrainingSampler, batches of one orientation), with a position.

    Args:
        cfg: a Detectron2 config whose SEED is not negative.

    Returns:
        DataLoader: an endless one of lists of mapped dataset dicts; its ``batch_sampler`` is :class:`Batches`.

    Raises:
        ValueError: if the batch does not divide by the number of processes.
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
    data = MapDataset(DatasetFromList(records, copy=False), ImageMapper(cfg, is_train=True))
    return torch.utils.data.DataLoader(
        SeededItems(data),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # starting draws from it, and not what the first iteration after --resume needs
    )


def start_workers(loader):
    """Have the workers of a loader of Detectron2's, with or without batches by shape, begin as those of our own.

    Args:
        loader: not iterated yet; changed in place, and returned.
    """
    inner = loader if isinstance(loader, torch.utils.data.DataLoader) else loader.dataset
    inner.worker_init_fn = functools.partial(_start_worker, inner.worker_init_fn)
    return loader


def _start_worker(seed, worker_id):
    start_worker()
    if seed:
        seed(worker_id)


class Batches(torch.utils.data.Sampler):
    """Batches of indices, from any position on: the stream of Detectron2's TrainingSampler in its two buckets by shape.

    Attributes:
        seed: of the order and of what happens to each image.
        start: number of batches that are left out at the beginning.
        records: dataset dicts of the images.
    """

    records = ()

    def __init__(self, wide, batch_size, seed, rank=0, world=1):
        """
        Args:
            wide: for each image, whether it goes into the first bucket (wider than high).
            batch_size: of one process.
            seed, rank, world: the images of one shuffled stream go to the processes in turn.
        """
        self.wide, self.batch_size, self.seed, self.rank, self.world = wide, batch_size, seed, rank, world
        self.start = 0

    def __iter__(self):
        """
        Yields:
            list of (seeds, index): for :class:`SeededItems`.
        """
        buckets, count = ([], []), 0
        for index in itertools.islice(self._stream(), self.rank, None, self.world):
            bucket = buckets[not self.wide[index]]
            bucket.append(index)
            if len(bucket) == self.batch_size:
                count += 1
                if count > self.start:
                    yield [((self.seed, self.rank, count, place), index) for place, index in enumerate(bucket)]
                bucket.clear()

    @functools.cached_property
    def digest(self):
        """SHA-256, in hexadecimal, of the images' names and sizes and of their objects, in order: classes, boxes, and
        of masks the ends and lengths of polygons (all of them would take a minute for COCO), or run-length codes."""
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
    """What tells a mask from others, cheaply."""
    if isinstance(segmentation, dict):
        return segmentation["counts"]
    return [(len(polygon), *polygon[:2], *polygon[-2:]) for polygon in segmentation or ()]


class SeededItems(torch.utils.data.Dataset):
    """A data set whose random transforms follow seeds that come with the index."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, item):
        seeds, index = item
        states = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):  # without workers this is the process that trains
                seed_everything(*seeds)
                return self.data[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def seed_everything(*seeds):
    """Seed Python's, numpy's and torch's global generators with any number of integers."""
    words = np.random.SeedSequence(seeds).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))

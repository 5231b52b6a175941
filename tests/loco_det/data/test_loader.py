"""The training loader: Detectron2's order, from any position, with the same images whatever else goes on."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetFromList, MapDataset
from detectron2.data.build import build_batch_data_loader
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loco_det.data import loader
from loco_det.data.loader import Batches, SeededItems, build_train_loader, seed_everything

# of each image, whether it is wider than high
SHAPES = st.lists(st.booleans(), min_size=1, max_size=12)


def take(batches, number, start=0):
    batches.start = start
    return list(itertools.islice(batches, number))


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(1, 4), st.integers(0, 2**31), st.integers(1, 3), st.integers(0, 20), st.data())
def test_from_a_position_on_it_is_the_same_stream(wide, batch_size, seed, world, start, data):
    batches = Batches(wide, batch_size, seed, data.draw(st.integers(0, world - 1)), world)
    assert take(batches, 5, start) == take(batches, start + 5)[start:]


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(1, 4), st.integers(0, 2**31))
def test_order_is_detectron2s(wide, batch_size, seed):
    # those that are not wide are square or high
    records = [{"width": 2 if w else 1, "height": 1 if w else 1 + i % 2, "i": i} for i, w in enumerate(wide)]
    stream = (records[i] for i in TrainingSampler(len(wide), seed=seed))
    theirs = itertools.islice(AspectRatioGroupedDataset(stream, batch_size), 12)
    ours = take(Batches(wide, batch_size, seed), 12)
    assert [[i for _, i in batch] for batch in ours] == [[record["i"] for record in batch] for batch in theirs]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31), st.integers(2, 4))
def test_processes_share_one_stream(images, seed, world):
    """Without the buckets, the images of all processes in turn are those of one process."""
    ranks = [take(Batches([True] * images, 1, seed, rank, world), 10) for rank in range(world)]
    shared = [batch[0][1] for step in zip(*ranks, strict=True) for batch in step]
    assert shared == [batch[0][1] for batch in take(Batches([True] * images, 1, seed), 10 * world)]
    seeds = [item[0] for batches in ranks for batch in batches for item in batch]
    assert len(set(seeds)) == len(seeds)


def test_batches_are_of_one_shape_and_seeds_are_their_own():
    wide = [i % 3 == 0 for i in range(10)]
    found = take(Batches(wide, 3, seed=1), 50)
    assert all(len({wide[i] for _, i in batch}) == 1 and len(batch) == 3 for batch in found)
    assert {wide[batch[0][1]] for batch in found} == {True, False}
    seeds = [seeds for batch in found for seeds, _ in batch]
    assert len(set(seeds)) == len(seeds) == 150


class Draws(torch.utils.data.Dataset):
    """What the three global generators give."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 3:
            raise OSError("damaged")
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_an_items_random_numbers_are_those_of_its_seeds():
    items = SeededItems(Draws())
    assert len(items) == 4
    expected = items[(1, 2, 3), 0]
    for seed in (0, 1):
        seed_everything(seed)
        before = states()
        assert items[(1, 2, 3), 0] == expected
        with pytest.raises(OSError, match="damaged"):
            items[(1, 2, 3), 3]
        assert states() == before  # those of the training are left alone, by an error, too
    others = [items[seeds, 0] for seeds in ((1, 2, 4), (1, 3, 2), (2, 2, 3), (0, 1, 2, 3))]
    for column in zip(expected, *others, strict=True):
        assert len(set(column)) == (1 if column[0] == 0 else 5)


# --- the whole loader, on images of noise -----------------------------------------------------------------------------


@pytest.fixture
def cfg(tmp_path):
    """Seven images, wide and high, registered as a data set."""
    records = []
    for i in range(7):
        width, height = (24, 16) if i % 2 else (16, 24)
        noise = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
        box = {"bbox": [2, 2, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
        records.append({"file_name": str(tmp_path / f"{i}.png"), "width": width, "height": height, "image_id": i,
                        "annotations": [box | {"segmentation": [[2, 2, 9, 2, 9, 9]]}]})  # fmt: skip
    DatasetCatalog.register("noise", lambda: records)
    cfg = get_cfg()
    cfg.SEED, cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH = 3, ("noise",), 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.DATALOADER.NUM_WORKERS = (12, 16, 20, 24), 0
    yield cfg
    DatasetCatalog.remove("noise")


def images(cfg, number=9, start=0):
    found = build_train_loader(cfg)
    found.batch_sampler.start = start
    return [[(d["image_id"], d["image"]) for d in batch] for batch in itertools.islice(found, number)]


def same(ours, theirs):
    pairs = [pair for batches in zip(ours, theirs, strict=True) for pair in zip(*batches, strict=True)]
    return all(i == j and torch.equal(a, b) for (i, a), (j, b) in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_depend_on_the_seed_and_the_position_only(cfg, workers):
    seed_everything(1)
    expected = images(cfg)
    seed_everything(2)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert same(images(cfg), expected) and same(images(cfg, 4, start=5), expected[5:])
    cfg.SEED = 4
    assert not same(images(cfg), expected)
    assert len({image.shape for batch in expected for _, image in batch}) > 4  # transforms are random indeed


@pytest.mark.parametrize("workers", [0, 2])
def test_training_s_random_numbers_are_left_alone(cfg, workers):
    """Else the first iteration after --resume, which starts the loader, would draw other proposals."""
    cfg.DATALOADER.NUM_WORKERS = workers
    before = states()
    images(cfg, 2)
    assert states() == before


def test_order_of_the_whole_loader_is_detectron2s(cfg):
    records = DatasetCatalog.get("noise")
    data = MapDataset(DatasetFromList(records), lambda record: record)
    sampler = TrainingSampler(len(records), seed=cfg.SEED)
    for grouping in (True, False):
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
        theirs = build_batch_data_loader(data, sampler, 2, aspect_ratio_grouping=grouping)
        expected = [[record["image_id"] for record in batch] for batch in itertools.islice(theirs, 9)]
        assert [[i for i, _ in batch] for batch in images(cfg)] == expected
        assert any(i % 2 != j % 2 for i, j in expected) is not grouping


def test_processes_have_their_part_of_the_batch(cfg, monkeypatch):
    monkeypatch.setattr(loader.comm, "get_world_size", lambda: 2)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    whole = [i for batch in take(Batches([True] * 7, 2, cfg.SEED), 6) for _, i in batch]
    for rank in (0, 1):
        monkeypatch.setattr(loader.comm, "get_rank", lambda rank=rank: rank)
        assert [[i for i, _ in batch] for batch in images(cfg, 6)] == [[i] for i in whole[rank::2]]
    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(ValueError, match="^SOLVER.IMS_PER_BATCH 3 does not divide by 2 processes$"):
        build_train_loader(cfg)

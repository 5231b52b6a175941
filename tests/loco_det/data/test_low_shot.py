"""Low-shot sets: which images are drawn, the same everywhere and for ever, and what Detectron2 gets of them."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from hypothesis import given, settings
from hypothesis import strategies as st

from loco_det.config import add_loco_config
from loco_det.data.datasets import prepare_datasets
from loco_det.data.low_shot import SEEDS, SIZES, checksum, draw, register_low_shot

IDS = range(1, 118288)  # as many as train2017 has images
CHECKSUMS = {  # of the draws from IDS: these never change, or published results change their meaning
    ("1k", 0): "e25e8346180f3bea",
    ("1k", 1): "9937d6b35b1a9c5c",
    ("1k", 2): "db037bc763c96534",
    ("1k", 3): "2b90f66794fcb5cd",
    ("1k", 4): "724fe8b8899c0a1e",
    ("10k", 0): "5727c69aca0d4746",
    ("10k", 4): "ee71891ae789f894",
    ("1pct", 0): "d177177a4a026e5e",
    ("2pct", 1): "a16a011ff40e8ddb",
    ("5pct", 2): "37f8ffd6820536d2",
    ("10pct", 3): "f0a3ed21680e280c",
}
LENGTHS = {"1k": 1000, "10k": 10000, "1pct": 1182, "2pct": 2365, "5pct": 5914, "10pct": 11828}


def test_published_lists():
    drawn = {(label, seed): draw(IDS, SIZES[label], seed) for label, seed in CHECKSUMS}
    assert {key: checksum(ids)[:16] for key, ids in drawn.items()} == CHECKSUMS
    assert {label: len(drawn[label, seed]) for label, seed in drawn} == LENGTHS and set(LENGTHS) == set(SIZES)
    assert drawn["1k", 0][:3] == [46, 87, 282]
    common = len(set(drawn["10k", 0]) & set(drawn["10k", 4]))
    assert abs(common - 10000 * 10000 / len(IDS)) < 5 * 30  # independent draws: 845 expected, deviation about 27


@settings(deadline=None, max_examples=50)
@given(st.sets(st.integers(0, 10**7), min_size=1, max_size=300), st.integers(0, 5), st.data())
def test_properties_of_a_draw(ids, seed, data):
    size = data.draw(st.integers(1, len(ids)))
    drawn = draw(sorted(ids), size, seed)
    assert len(drawn) == size and set(drawn) <= ids and drawn == sorted(drawn)
    assert drawn == draw(data.draw(st.permutations(sorted(ids))), size, seed)  # the order of the file does not matter
    smaller = data.draw(st.integers(1, size))
    assert set(draw(sorted(ids), smaller, seed)) <= set(drawn)
    other = data.draw(st.sets(st.sampled_from(sorted(ids)), min_size=size))
    assert set(drawn) & other <= set(draw(sorted(other), size, seed))  # nor do the images that were not drawn


@given(st.integers(1, 2000), st.integers(1, 100))
def test_shares_are_rounded_down(count, percent):
    if count * percent < 100:
        with pytest.raises(ValueError, match=f"{percent}% of {count} images cannot be drawn"):
            draw(range(count), f"{percent}%", 0)
    else:
        assert len(draw(range(count), f"{percent}%", 0)) == count * percent // 100


@pytest.mark.parametrize("size", [0, -1, 11])
def test_sizes_that_cannot_be(size):
    with pytest.raises(ValueError, match=f"{size} of 10 images cannot be drawn"):
        draw(range(10), size, 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Forty registered images, half of them without objects, not in the order of their ids."""
    path = tmp_path_factory.mktemp("coco") / "train.json"
    images = [{"id": 7 * i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in reversed(range(40))]
    square = {"bbox": [2, 2, 8, 6], "area": 48, "iscrowd": 0, "segmentation": [[2, 2, 10, 2, 10, 8, 2, 8]]}
    objects = [{"id": i + 1, "image_id": 7 * i, "category_id": 1, **square} for i in range(0, 40, 2)]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cell"}]}
    path.write_text(json.dumps(content))
    register_coco_instances("forty", {"thing_classes": ["cell"]}, str(path), "folder")
    register_low_shot("forty")
    return "forty"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_detectron2_gets(base, seed):
    name = f"{base}_10pct_seed{seed}"
    records, whole = DatasetCatalog.get(name), {r["image_id"]: r for r in DatasetCatalog.get(base)}
    assert [r["image_id"] for r in records] == draw([7 * i for i in range(40)], 4, seed)
    assert records == [whole[r["image_id"]] for r in records]
    assert MetadataCatalog.get(name).thing_classes == ["cell"]
    assert MetadataCatalog.get(name).json_file == MetadataCatalog.get(base).json_file


def test_images_without_objects_count_and_are_then_left_out(base):
    left = {}
    for name in (f"{base}_10pct_seed{seed}" for seed in SEEDS):
        with_objects = [r for r in DatasetCatalog.get(name) if r["annotations"]]
        if with_objects:
            assert get_detection_dataset_dicts(name) == with_objects
            left[name] = len(with_objects)
    assert left and min(left.values()) < 4


def test_too_small_a_data_set(base):
    with pytest.raises(ValueError, match="forty_1k_seed0: 1000 of 40 images cannot be drawn: forty is too small"):
        DatasetCatalog.get(f"{base}_1k_seed0")


def test_coco_is_registered_with_the_data_sets_and_not_read(tmp_path):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.DATASETS.TRAIN = ("coco_2017_train_10k_seed4",)
    for _ in range(2):  # a second time changes nothing
        with pytest.raises(FileNotFoundError, match="train_10k_seed4: .*instances_train2017.json is not there"):
            prepare_datasets(cfg)
    names = {f"coco_2017_train_{label}_seed{seed}" for label in SIZES for seed in range(5)}
    assert names <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("coco_2017_train_1pct_seed0").thing_classes[0] == "person"


def test_parts_are_no_test_sets(base):
    from loco_det.evaluation.build import evaluator_type

    assert evaluator_type(base) == "coco"
    with pytest.raises(ValueError, match="no evaluator"):
        evaluator_type(f"{base}_10pct_seed0")

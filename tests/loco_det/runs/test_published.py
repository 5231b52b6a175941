"""A published figure is for the row's weights, data, schedule and network alone."""

import os

import pytest
import yaml
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.runs.published import differences, published_row, row_config
from pretrain.config import get_cfg as get_pretraining_cfg
from pretrain.files.shipped_configs import CONFIGS

SUPERVISED = "detection/coco_frozen/resnet50_supervised"
RANDOM = "detection/coco_1k_finetune/resnet50_random"
MOCO = "detection/coco_finetune_c4_2x/resnet50_moco_v1_200ep"
TORCHVISION = {"source": "resnet50.pth", "layout": "torchvision", "sha256": f"0676ba61{'0' * 56}"}


def config(name, *changes):
    """The config of a file in configs/ with KEY VALUE pairs, as a run writes it down."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.merge_from_list(list(changes))
    return yaml.safe_load(cfg.dump())


def pretraining(recipe, *changes, images=1_281_167, iterations=None):
    """What the converter writes of a run of tools/pretrain.py."""
    cfg = get_pretraining_cfg()
    cfg.merge_from_file(str(CONFIGS / f"pretrain/{recipe}.yaml"))
    cfg.merge_from_list(["DATASETS.TRAIN", "/data/imagenet/train", "OUTPUT_DIR", "x", "SEED", 5, *changes])
    planned = round(cfg.SOLVER.EPOCHS * (images // cfg.SOLVER.IMS_PER_BATCH))
    return {
        "config": yaml.safe_load(cfg.dump()),
        "images": images,
        "iterations": planned if iterations is None else iterations,
    }


def loco(*changes, **more):
    return config("coco_loco_frozen", *changes), {
        "weights": "out.pkl", "iteration": 90000, "pretraining": pretraining("imagenet/resnet50_loco_800ep"), **more,
    }  # fmt: skip


def test_the_row_itself():
    cfg, run = loco("OUTPUT_DIR", "x", "SEED", 3, "DATALOADER.NUM_WORKERS", 1, "TEST.EVAL_PERIOD", 5000)
    assert differences(cfg, **run) == []
    row = published_row(cfg, **run)
    assert (row["box_ap"], row["mask_ap"], row["differences"]) == (34.5, 32.0, [])
    assert row["row"] == "LoCo 800 epochs, R50, frozen, COCO 1x (LoCo, Table 2)"


def test_a_config_of_no_row():
    assert published_row(config("demo_coco_loco_frozen"), weights="x", iteration=1) is None


SCHEDULE = "schedule (4 iterations, the row has 90000)"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (("SOLVER.MAX_ITER", 4), SCHEDULE),
        (("SOLVER.STEPS", (10, 20)), "schedule (steps at 10, 20, the row has 60000, 80000)"),
        (("SOLVER.IMS_PER_BATCH", 2), "schedule (2 images a step, the row has 16)"),
        (("DATASETS.TRAIN", ("coco_2017_train_10pct_seed0",)), "data (trained on coco_2017_train_10pct, the row has "
         "coco_2017_train)"),
        (("DATASETS.TEST", ("my_val",)), "data (tested on my_val, the row has coco_2017_val)"),
        (("MODEL.BACKBONE.FREEZE_AT", 0), "settings (MODEL.BACKBONE.FREEZE_AT 0, the row has 5)"),
        (("MODEL.FPN.NORM", ""), "settings (MODEL.FPN.NORM none, the row has SyncBN)"),
        (("MODEL.ROI_BOX_HEAD.NUM_CONV", 0), "settings (MODEL.ROI_BOX_HEAD.NUM_CONV 0, the row has 4)"),
        (("MODEL.RESNETS.STRIDE_IN_1X1", True), "settings (MODEL.RESNETS.STRIDE_IN_1X1 True, the row has False)"),
        (("SOLVER.BASE_LR", 0.01), "settings (SOLVER.BASE_LR 0.01, the row has 0.02)"),
        (("INPUT.MIN_SIZE_TEST", 64), "settings (INPUT.MIN_SIZE_TEST 64, the row has 800)"),
    ],
)  # fmt: skip
def test_another_run_than_the_row(changes, text):
    cfg, run = loco(*changes)
    run["iteration"] = cfg["SOLVER"]["MAX_ITER"]
    assert differences(cfg, **run) == [text]


def test_many_differences_are_counted():
    cfg, run = loco("INPUT.MIN_SIZE_TEST", 1, "SOLVER.BASE_LR", 1.0, "SOLVER.GAMMA", 1.0, "SOLVER.MOMENTUM", 0.0,
                    "SOLVER.WEIGHT_DECAY", 1.0, "MODEL.FPN.NORM", "BN")  # fmt: skip
    (text,) = differences(cfg, **run)
    assert text.count("the row has") == 4 and text.endswith("; and 2 more)")


def test_a_checkpoint_in_the_middle_of_the_training():
    cfg, run = loco(iteration=4)
    assert differences(cfg, **run) == [SCHEDULE]
    cfg, run = loco(iteration=None)
    assert differences(cfg, **run) == ["training (how long is not known)"]


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (None, "not known to be from configs/pretrain/imagenet/resnet50_loco_800ep.yaml, as the row's are"),
        ({"config": "no dict", "images": 1, "iterations": 1}, "not known to be from"),
        (pretraining("imagenet/resnet50_loco_800ep", "SOLVER.EPOCHS", 5.0), "5.0 epochs, the row has 800.0"),
        (pretraining("imagenet/resnet50_loco_800ep", images=9469), "9469 images, the row has 1281167"),
        (pretraining("imagenet/resnet50_loco_800ep", iterations=5000), "5000 of 249600 iterations"),
        (pretraining("imagenet/resnet50_gim_800ep"), "MODEL.UNITS"),
        (pretraining("imagenet/resnet50_loco_800ep", "INPUT.CROP_SIZE", 96), "INPUT.CROP_SIZE 96, the row has 224"),
        (pretraining("imagenet/shufflenetv2_50_loco_800ep"), "MODEL.ENCODER shufflenetv2_50, the row has resnet50"),
    ],
)
def test_other_weights_of_ours(known, text):
    cfg, run = loco(pretraining=known)
    (found,) = differences(cfg, **run)
    assert found.startswith("weights (") and text in found


@pytest.mark.parametrize(
    ("name", "iteration", "weights", "metadata", "text"),
    [
        (SUPERVISED, 90000, "x.pkl", TORCHVISION, ""),
        (SUPERVISED, 90000, "x.pkl", {**TORCHVISION, "sha256": "1" * 64},
         "weights (of resnet50.pth, the row has resnet50-0676ba61.pth)"),
        (SUPERVISED, 90000, "output/resnet50_supervised.pkl", None,
         "weights (of unknown origin, the row has resnet50-0676ba61.pth)"),
        (RANDOM, 15000, "random", None, ""),
        (RANDOM, 15000, "my.pkl", TORCHVISION, "weights (my.pkl, the row has random)"),
        (SUPERVISED, 90000, "random", None,
         "weights (random, the row has resnet50-0676ba61.pth)"),
        (MOCO, 180000, "x", {"source": "moco_v1_200ep_pretrain.pth.tar"},
         "weights (of a file called moco_v1_200ep_pretrain.pth.tar, as the row's; nothing proves that it is the same)"),
        (MOCO, 180000, "x", {"source": "moco_v2_200ep_pretrain.pth.tar"},
         "weights (of moco_v2_200ep_pretrain.pth.tar, the row has moco_v1_200ep_pretrain.pth.tar)"),
    ],
)  # fmt: skip
def test_released_and_random_weights(name, iteration, weights, metadata, text):
    found = differences(config(name), weights=weights, metadata=metadata, iteration=iteration)
    assert found == ([text] if text else [])


def test_a_row_of_voc_has_a_box_ap_alone():
    run = {"weights": "x", "iteration": 24000, "metadata": {"source": "moco_v2_200ep_pretrain.pth.tar"}}
    row = published_row(config("detection/voc_finetune_c4/resnet50_moco_v2_200ep"), **run, images={VOC_TEST: 4952})
    assert (row["row"], row["box_ap"], row["mask_ap"]) == (
        "MoCo v2 200 epochs, R50-C4, fine-tuned, VOC 07+12 (MoCo, README)", 57.0, None,
    )  # fmt: skip
    assert row["differences"] == [
        "weights (of a file called moco_v2_200ep_pretrain.pth.tar, as the row's; nothing proves that it is the same)"
    ]
    row = published_row(config("detection/voc_finetune_c4/resnet50_moco_v2_200ep"), **run, images={VOC_TEST: 100})
    assert row["differences"][1] == "data (100 images in voc_2007_test, the row has 4952)"


VOC_TEST = "voc_2007_test"


def test_every_split_of_a_low_shot_set_is_the_rows():
    name, run = RANDOM, {"weights": "random", "iteration": 15000}
    assert differences(config(name, "DATASETS.TRAIN", ("coco_2017_train_1k_seed4",)), **run) == []
    (text,) = differences(config(name, "DATASETS.TRAIN", ("coco_2017_train_10pct_seed0",)), **run)
    assert text == "data (trained on coco_2017_train_10pct, the row has coco_2017_train_1k)"


def test_a_row_of_ones_own():
    cfg, run = loco("PUBLISHED.ROW", "mine, Table 1")
    assert differences(cfg, **run) == ["settings (no file in configs/ defines this row)"]


def test_each_row_is_defined_once():
    rows = []
    for path in CONFIGS.rglob("*.yaml"):
        row = (yaml.safe_load(path.read_text()).get("PUBLISHED") or {}).get("ROW")
        rows += [row] if row else []
    assert len(rows) == len(set(rows)) > 40
    assert os.path.basename(row_config(rows[0]).OUTPUT_DIR)


def test_a_part_of_a_data_set_under_its_name():
    run = {"weights": "random", "iteration": 15000}
    small = {"coco_2017_val": 4, "custom": 3}
    assert differences(config(RANDOM), **run, images=small) == ["data (4 images in coco_2017_val, the row has 5000)"]
    assert differences(config(RANDOM), **run, images={"coco_2017_val": 5000}) == []


def test_no_config_of_a_run_makes_a_figure():
    changed = config(RANDOM)
    changed["PUBLISHED"]["BOX_AP"] = 99.0
    row = published_row(changed, weights="random", iteration=15000)
    assert (row["box_ap"], row["differences"]) == (2.5, [])

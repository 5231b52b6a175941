"""What must be equal for two runs to be compared: every key of the config is decided upon."""

import hashlib

import pytest

from loco_det.runs.comparable import COUNTED, NOT_COUNTED, comparability, counts, key_of
from loco_det.runs.published import FREE, default_config, flat, row_config

FACTS = {"data.train": ["a" * 64], "images.test": [50], "classes": ["car", "ox"]}


def config(changes=()):
    """A Mask R-CNN with FPN, its backbone frozen, with other values of some keys."""
    cfg = row_config("LoCo 800 epochs, R50, frozen, COCO 1x (LoCo, Table 2)").clone()
    cfg.merge_from_list([part for pair in changes for part in pair])
    return cfg


def test_every_key_either_counts_or_does_not():
    """A new key has to be put into COUNTED, NOT_COUNTED or FREE of loco_det/runs/published.py."""
    lists = {key: [bool(one.fullmatch(key)) for one in (COUNTED, NOT_COUNTED, FREE)] for key in flat(default_config())}
    assert {key: found for key, found in lists.items() if sum(found) != 1} == {}
    assert all(counts(key) == found[0] for key, found in lists.items())
    assert len(lists) > 150 and counts("SOME.NEW_KEY")


@pytest.mark.parametrize(
    ("key", "value"),
    [("SOLVER.MAX_ITER", 7), ("SOLVER.STEPS", (3,)), ("SOLVER.IMS_PER_BATCH", 2), ("SOLVER.WEIGHT_DECAY", 0.5),
     ("SOLVER.WARMUP_ITERS", 1), ("INPUT.MIN_SIZE_TEST", 640), ("INPUT.CROP.ENABLED", True), ("MODEL.FPN.NORM", "GN"),
     ("MODEL.BACKBONE.FREEZE_AT", 2), ("MODEL.ROI_HEADS.NUM_CLASSES", 3), ("MODEL.RPN.NMS_THRESH", 0.6),
     ("MODEL.ANCHOR_GENERATOR.SIZES", [[16]]), ("MODEL.META_ARCHITECTURE", "RetinaNet"), ("TEST.AUG.ENABLED", True),
     ("MODEL.BACKBONE.NAME", "build_resnet_backbone"), ("MODEL.FPN.IN_FEATURES", ["res5"]),
     ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False), ("MODEL.LIGHT_HEAD.WIDTH", 32), ("SOLVER.OPTIMIZER", "AdamW"),
     ("SOLVER.LAYER_DECAY", 0.7), ("INPUT.LSJ.SIZE", 1024), ("MODEL.TIMM.DROP_PATH", 0.1),
     ("MODEL.TIMM.SQUARE_PAD", 1024)],
)  # fmt: skip
def test_other_settings_have_another_key(key, value):
    wanted, found = comparability(config(), FACTS), comparability(config([(key, value)]), FACTS)
    assert found.key != wanted.key and found.settings.keys() - wanted.settings.keys() <= {"MODEL.RESNETS.OUT_FEATURES"}
    assert found.settings[key] != wanted.settings[key]


@pytest.mark.parametrize(
    "changes",
    [[("SEED", 3)], [("OUTPUT_DIR", "x")], [("SOLVER.BASE_LR", 0.3)], [("MODEL.WEIGHTS", "a.pkl")],
     [("MODEL.RESNETS.DEPTH", 18), ("MODEL.RESNETS.RES2_OUT_CHANNELS", 64)], [("MODEL.RESNETS.STRIDE_IN_1X1", True)],
     [("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]), ("INPUT.FORMAT", "RGB")], [("MODEL.DEVICE", "cuda")],
     [("MODEL.BACKBONE.NAME", "build_encoder_fpn_backbone"), ("MODEL.ENCODER", "presnet50"),
      ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res4", "res5", "res7"]),
      ("MODEL.FPN.IN_FEATURES", ["res2", "res4", "res5", "res7"])],
     [("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"), ("MODEL.TIMM.NAME", "vit_small_patch16_224"),
      ("MODEL.BACKBONE.FREEZE_AT", 99)],
     [("DATALOADER.NUM_WORKERS", 0)], [("SOLVER.AMP.ENABLED", True)], [("MODEL.BACKBONE.FREEZE_AT", 7)],
     [("MODEL.RESNETS.NORM", "BN")], [("DATASETS.TRAIN", ("other",))], [("PUBLISHED.ROW", "x")]],
)  # fmt: skip
def test_backbone_rate_seed_and_machine_do_not_count(changes):
    assert comparability(config(changes), FACTS) == comparability(config(), FACTS)


def test_a_vit_of_which_some_blocks_are_frozen_is_not_a_frozen_one():
    vit = [("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"), ("MODEL.TIMM.NAME", "vit_small_patch16_224")]
    keys = [comparability(config([*vit, ("MODEL.BACKBONE.FREEZE_AT", n)]), FACTS).key for n in (0, 4, 5, 7, 12, 99)]
    assert len(set(keys)) == 6 and keys[-1] == comparability(config(), FACTS).key


def test_norms_of_a_trained_backbone_count():
    tuned = [("MODEL.BACKBONE.FREEZE_AT", 0)]
    first, second = (comparability(config([*tuned, ("MODEL.RESNETS.NORM", norm)]), FACTS) for norm in ("BN", "SyncBN"))
    assert first.key != second.key
    c4 = [("MODEL.ROI_HEADS.NAME", "Res5ROIHeads")]  # trains res5 also on a frozen backbone
    first, second = (comparability(config([*c4, ("MODEL.RESNETS.NORM", norm)]), FACTS) for norm in ("BN", "SyncBN"))
    assert first.key != second.key


def test_facts_and_versions_count(monkeypatch):
    wanted = comparability(config(), FACTS)
    assert wanted.settings["data.train"] == ["a" * 64] and wanted.settings["detectron2"]
    assert comparability(config(), {**FACTS, "images.test": [51]}).key != wanted.key
    for version, same in (("9.1.0+gabc", False), (wanted.settings["loco-det"] + "+g1234567.dirty", True)):
        monkeypatch.setattr("loco_det.runs.comparable.version", lambda version=version: version)
        found = comparability(config(), FACTS)
        assert (found.key == wanted.key) == same and "+" not in found.settings["loco-det"]


def test_keys_are_of_the_values_and_not_of_their_form():
    found = hashlib.sha256(b'{"a":null,"b":[1]}').hexdigest()[:12]
    assert key_of({"b": [1], "a": None}) == key_of({"a": None, "b": [1]}) == found
    nested = {"SOLVER": {"MAX_ITER": 9}}
    assert comparability(nested, FACTS).settings["SOLVER.MAX_ITER"] == 9
    cfg = default_config().clone()
    cfg.SOLVER.MAX_ITER = 9
    assert comparability(nested, FACTS) == comparability(cfg, FACTS)

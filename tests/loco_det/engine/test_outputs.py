"""results.json and what else a detection run leaves, from made-up evaluations."""

import hashlib
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from loco_det.config import add_loco_config
from loco_det.engine import outputs as results
from loco_det.engine.outputs import describe, finish, schedule
from loco_det.engine.problems import UnfinishedRun
from loco_det.report import visualize
from loco_det.runs.comparable import key_of
from loco_det.runs.folder import is_finished
from pretrain.config import get_cfg as get_pretraining_cfg
from pretrain.files.results import DetectionResults, base, read_results
from pretrain.files.shipped_configs import CONFIGS

RESULTS = {"bbox": {"AP": 12.5, "APl": math.nan, "AP-ox": math.nan}, "segm": {"AP": 10.0}}


class Detector(torch.nn.Module):
    """As much of a detector as is looked at: a backbone of two stages under FPN, or without."""

    def __init__(self, learning=True, fpn=True):
        super().__init__()
        bottom_up = torch.nn.ModuleDict({"res2": torch.nn.Linear(1, 1), "res7": torch.nn.Linear(1, 1)})
        bottom_up.requires_grad_(False)
        bottom_up["res7"].requires_grad_(learning)
        self.backbone = (
            torch.nn.ModuleDict({"bottom_up": bottom_up, "fpn": torch.nn.Linear(1, 1)}) if fpn else bottom_up
        )


@pytest.fixture
def cfg(tmp_path):
    """A config with a registered test set of one image and one object of two classes."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = str(tmp_path / "run"), "cpu"
    Image.new("RGB", (60, 40), "gray").save(tmp_path / "a.png")
    box = {"bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
    truth = {
        "images": [{"id": 4, "file_name": "a.png", "width": 60, "height": 40}],
        "categories": [{"id": 3, "name": "tram"}, {"id": 9, "name": "ox"}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 9, **box}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    name = f"results_{tmp_path.name}"
    register_coco_instances(name, {}, str(tmp_path / "truth.json"), str(tmp_path))
    MetadataCatalog.get(name).set(thing_classes=["tram", "ox"], thing_dataset_id_to_contiguous_id={3: 0, 9: 1})
    cfg.DATASETS.TEST, cfg.DATASETS.TRAIN = (name,), ("some_train",)
    (tmp_path / "run" / "inference").mkdir(parents=True)
    found = [{"image_id": 4, "category_id": 9, "bbox": [5, 6, 20, 20], "score": 0.9}]
    (tmp_path / "run" / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
    return cfg


def test_files(cfg, monkeypatch):
    monkeypatch.setattr(results, "predict", lambda *_: ())  # the pictures have their own tests
    folder, state = Path(cfg.OUTPUT_DIR), {"iteration": 299, "trainer": {"weights": "random", "seconds": 12.5}}
    finish(cfg, Detector(), RESULTS, state, evaluation_seconds=3.5)
    content = json.loads((folder / "results.json").read_text())
    assert content["kind"] == "detection" and read_results(folder / "results.json").to_json() == content
    assert content["results"]["bbox"] == {"AP": 12.5, "APl": None, "AP-ox": None}
    assert (content["iteration"], content["seconds"], content["evaluation_seconds"]) == (300, 12.5, 3.5)
    assert (content["thing_classes"], content["category_ids"]) == (["tram", "ox"], [3, 9])
    assert (content["processes"], content["images_per_step"], content["max_iter"]) == (1, 16, 40000)
    assert content["peak_memory"] > 5e7 and content["device"] == "cpu"
    analysis = json.loads((folder / "analysis.json").read_text())
    assert analysis["dataset"] == cfg.DATASETS.TEST[0] and analysis["confusion"]["right"] == 1
    assert Image.open(folder / "analysis.png").size[0] > 1000 and not list(folder.glob(".*"))
    (folder / "inference" / "coco_instances_results.json").unlink()
    finish(
        cfg, Detector(), RESULTS, {}
    )  # an evaluator that leaves no predictions: the older analysis is not this one's
    assert not (folder / "analysis.json").exists() and not (folder / "analysis.png").exists()
    content = json.loads((folder / "results.json").read_text())
    assert (content["iteration"], content["seconds"], content["weights"]) == (None, None, "")


def test_threshold_of_pictures_is_that_of_the_confusions(cfg, monkeypatch):
    monkeypatch.setattr(results, "predict", lambda *_: ())
    cfg.TEST.PICTURE_THRESHOLD = 0.95
    finish(cfg, Detector(), RESULTS, {})
    assert json.loads(Path(cfg.OUTPUT_DIR, "analysis.json").read_text())["confusion"]["missed"] == 1


def test_frozen_is_what_does_not_learn(cfg):
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM = 5, "SyncBN"
    for fpn in (True, False):
        found = describe(cfg, Detector(learning=True, fpn=fpn), {})
        assert (found.frozen, found.norm, found.freeze_at) == (False, "SyncBN", 5)
        found = describe(cfg, Detector(learning=False, fpn=fpn), {})
        assert (found.frozen, found.norm) == (True, "FrozenBN")


def test_networks_norms_and_published_row(cfg):
    found = describe(cfg, Detector(), {})
    assert (found.backbone, found.heads_norm, found.published) == ("ResNet-50", "none", None)
    cfg.MODEL.ENCODER, cfg.MODEL.FPN.NORM, cfg.MODEL.ROI_BOX_HEAD.NORM = "presnet50", "SyncBN", "SyncBN"
    found = describe(cfg, Detector(), {})
    assert (found.backbone, found.heads_norm) == ("presnet50", "SyncBN, none")


def test_the_published_row_and_what_differs_from_it(cfg, tmp_path):
    data = cfg.DATASETS.TEST
    cfg.merge_from_file(str(CONFIGS / "coco_loco_frozen.yaml"))
    recipe = get_pretraining_cfg()
    recipe.merge_from_file(str(CONFIGS / "pretrain/imagenet/resnet50_loco_800ep.yaml"))
    known = {"config": yaml.safe_load(recipe.dump()), "images": 1_281_167, "iterations": 249_600}
    path, row = tmp_path / "loco.pkl", "LoCo 800 epochs, R50, frozen, COCO 1x (LoCo, Table 2)"
    for written, differences in ((known, []), (None, ["weights (not known to be from"])):
        path.write_bytes(pickle.dumps({"__author__": "loco-det", "model": {}, "pretraining": written, "arch": "x"}))
        found = describe(cfg, Detector(), {"iteration": 89999, "trainer": {"weights": str(path)}})
        assert (found.published.row, found.published.box_ap, found.published.mask_ap) == (row, 34.5, 32.0)
        assert [text[: len("weights (not known to be from")] for text in found.published.differences] == differences
        assert found.weights_metadata == {"arch": "x"}
    cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER = data, 4
    found = describe(cfg, Detector(), {"iteration": 3}).published.differences
    assert [text.partition(" ")[0] for text in found] == ["weights", "data", "schedule"]


def test_what_it_can_be_compared_with(cfg, tmp_path):
    cfg.DATASETS.TRAIN, cfg.SOLVER.MAX_ITER = cfg.DATASETS.TEST, 4
    state = {"iteration": 3, "trainer": {"images": {cfg.DATASETS.TEST[0]: 1}}}
    found = describe(cfg, Detector(), state).comparability
    digest = hashlib.sha256((tmp_path / "truth.json").read_bytes()).hexdigest()
    wanted = {
        "data.train": [digest], "data.test": [digest], "images.train": [1], "images.test": [1], "AP": ["COCO's"],
        "classes": ["tram", "ox"], "iterations not trained": 0, "SOLVER.MAX_ITER": 4,
    }  # fmt: skip
    assert {key: found.settings[key] for key in wanted} == wanted and found.key == key_of(found.settings)
    path = Path(cfg.OUTPUT_DIR, "results.json")
    DetectionResults(results={"bbox": {"AP": 1.0}}, comparability=found).write(path)
    assert read_results(path).comparability == found
    assert describe(cfg, Detector(), {**state, "iteration": 1}).comparability.settings["iterations not trained"] == 2


def test_it_is_compared_with_nothing_if_not_all_is_known(cfg, tmp_path, caplog):
    state = {"iteration": 3}
    assert describe(cfg, Detector(), state).comparability is None  # some_train is not registered
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST
    assert describe(cfg, Detector(), {}).comparability is None
    assert describe(cfg, Detector(), state).comparability
    (tmp_path / "truth.json").rename(tmp_path / "gone.json")
    assert describe(cfg, Detector(), state).comparability is None and "truth.json" in caplog.text


def test_training_data_are_those_that_were_trained_on(cfg, tmp_path):
    cfg.DATASETS.CUSTOM.NAME, cfg.DATASETS.CUSTOM.TRAIN_JSON = "own", str(tmp_path / "truth.json")
    cfg.DATASETS.TRAIN = ("own_train",)  # which an evaluation does not register
    digest = hashlib.sha256((tmp_path / "truth.json").read_bytes()).hexdigest()
    found = describe(cfg, Detector(), {"iteration": 3}).comparability
    assert found.settings["data.train"] == [digest]
    trained = {"versions": ["a" * 64]}  # before the file was changed, or moved
    found = describe(cfg, Detector(), {"iteration": 3, "trainer": trained}).comparability
    assert found.settings["data.train"] == ["a" * 64] and found.settings["data.test"] == [digest]


@pytest.mark.parametrize(
    ("train", "iterations", "images", "text"),
    [
        ("coco_2017_train", 90000, 16, "1x"),
        ("coco_2017_train", 360000, 8, "2x"),
        ("coco_2017_train", 102857, 14, "1x"),
        ("coco_2017_train", 100000, 16, "100000 x 16 images"),
        ("coco_2017_train", 60, 2, "60 x 2 images"),
        ("coco_2017_train_1k_seed0", 15000, 16, "15000 x 16 images"),
        ("cityscapes_fine_instance_seg_train", 24000, 8, "64 epochs"),
        ("cityscapes_fine_instance_seg_train", 2, 8, "2 x 8 images"),
    ],
)
def test_schedules(cfg, train, iterations, images, text):
    cfg.DATASETS.TRAIN, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = (train,), iterations, images
    assert schedule(cfg) == text


def test_where_the_weights_come_from(cfg, pretraining):
    metadata = {"source": "model_final.pth", "layout": "ours", "arch": "resnet18", "date": "2026-11-22"}
    path = pretraining / "backbone.pkl"
    path.write_bytes(pickle.dumps({"__author__": "loco-det", "model": {}, **metadata}))
    cfg.MODEL.WEIGHTS = "somewhere/else.pkl"
    found = describe(cfg, Detector(), {"trainer": {"weights": str(path)}})
    assert found.weights == str(path) and found.weights_metadata == metadata
    assert found.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.decoder == "1 conv block, downsampling, MLP 512-128"
    found = describe(cfg, Detector(), {})  # not there
    assert [found.weights_sha256, found.weights_metadata, found.decoder] == [None] * 3
    path.write_bytes(pickle.dumps({"__author__": "another", "model": {}, **metadata}))
    assert describe(cfg, Detector(), {"trainer": {"weights": str(path)}}).weights_metadata is None


FAILURES = [
    KeyError("area"),
    ZeroDivisionError("division by zero"),
    MemoryError(),
    OSError(28, "No space left", "a.png"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("step", ["describe", "analyze", "save_comparisons"])
def test_what_fails_after_the_evaluation_does_not_take_the_rest_along(cfg, monkeypatch, caplog, step, error):
    """Its line in results.json, a warning, and in the end the command that goes on."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(results, "predict", lambda *_: ())
    monkeypatch.setattr(visualize if step == "save_comparisons" else results, step, fail)
    folder = Path(cfg.OUTPUT_DIR)
    with pytest.raises(UnfinishedRun) as caught:
        finish(cfg, Detector(), RESULTS, {})
    content = json.loads((folder / "results.json").read_text())
    assert content["results"]["bbox"]["AP"] == 12.5
    (problem,) = content["problems"]
    name = {"describe": "description of the run", "analyze": "analysis", "save_comparisons": "pictures"}[step]
    assert problem.startswith(f"{name}: ") and "\n" not in problem
    warnings = [
        r.getMessage() for r in caplog.records if r.name == "loco_det.engine.problems" and r.levelname == "WARNING"
    ]
    assert [text.partition(" failed")[0] for text in warnings] == [name]
    command = f"python tools/train_net.py --config-file {folder}/config.yaml --eval-only --resume"
    assert str(caught.value) == f"{problem}. With that mended, this goes on: {command}"
    assert (folder / "analysis.json").exists() == (step != "analyze")
    assert (folder / "pictures").exists() == (step != "save_comparisons")
    assert not is_finished(folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(0)])
def test_ctrl_c_and_sigterm_are_no_problems(cfg, monkeypatch, error):
    def stop(*_):
        raise error

    monkeypatch.setattr(results, "write_analysis", stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        finish(cfg, Detector(), RESULTS, {})


def test_a_full_disk_is_a_problem_of_results_json(cfg, monkeypatch):
    def full(path, _):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(results, "predict", lambda *_: ())
    monkeypatch.setattr(results, "write_whole", full)
    monkeypatch.setattr(base, "write_json", full)
    with pytest.raises(UnfinishedRun, match="results.json: .*results.json: No space left on device; analysis: "):
        finish(cfg, Detector(), RESULTS, {})
    assert not Path(cfg.OUTPUT_DIR, "results.json").exists()


def test_an_evaluation_that_gave_nothing_keeps_an_earlier_ones_files(cfg, monkeypatch):
    monkeypatch.setattr(results, "predict", lambda *_: ())
    finish(cfg, Detector(), RESULTS, {})
    files = {path: path.read_bytes() for path in Path(cfg.OUTPUT_DIR).rglob("*") if path.is_file()}
    with pytest.raises(UnfinishedRun, match="^evaluation on a: broken. With that mended, .* --eval-only$"):
        finish(cfg, Detector(), {}, {}, problems=["evaluation on a: broken"], resume=False)
    assert {path: path.read_bytes() for path in Path(cfg.OUTPUT_DIR).rglob("*") if path.is_file()} == files
    Path(cfg.OUTPUT_DIR, "results.json").unlink()
    with pytest.raises(UnfinishedRun):
        finish(cfg, Detector(), {}, {}, problems=["evaluation on a: broken"])
    content = json.loads(Path(cfg.OUTPUT_DIR, "results.json").read_text())
    assert (content["results"], content["problems"]) == ({}, ["evaluation on a: broken"])

"""Run folders with damaged files: reports, pictures, cards and means are made, or refused in one line."""

import json
import math
import shutil

import pytest
import torch
import yaml
from cases import one_line
from detectron2.config import get_cfg as get_detectron2_cfg
from mutate import changed_bytes, changed_values
from PIL import Image

from loco_det.cli.common import low_shot_summary
from loco_det.config import add_loco_config
from loco_det.engine.predict import run_classes
from loco_det.report.page import render, render_markdown
from loco_det.report.readouts import readouts_text
from loco_det.report.runs import pretraining_text, table_text
from loco_det.report.seeds import seeds_text
from loco_det.runs.find import find_runs
from pretrain.config import get_cfg
from pretrain.engine.checkpoint import AtomicCheckpointer
from pretrain.engine.curves import draw_losses
from pretrain.learning.build import build_learner
from pretrain.model_card.readouts import read_readout
from pretrain.model_card.run import PretrainingRun
from pretrain.readout.curves import draw_probe

SHA = "0" * 64
CURVE = [i / 100 for i in range(101)]


def detection_results():
    box = {"AP": 12.34, "AP50": 30.06, "AP75": 7, "APs": None, "APm": 10.0, "APl": 20.0, "AP-square": 9.0}
    return {
        "kind": "detection", "dataset": "demo_val", "train_dataset": "demo_train", "iteration": 300, "frozen": True,
        "weights": "loco/backbone.pkl", "weights_sha256": SHA, "weights_metadata": {"sha256": SHA, "source": "loco"},
        "backbone": "ResNet-18", "seconds": 123.4, "evaluation_seconds": 1.5, "peak_memory": 10**9, "device": "cpu",
        "processes": 1, "images_per_step": 2, "max_iter": 300, "schedule": "300 x 2 images", "freeze_at": 5,
        "norm": "FrozenBN", "heads_norm": "BN", "decoder": "no conv block, MLP 512-128", "problems": [],
        "published": {"row": "COCO, LoCo", "box_ap": 38.2, "mask_ap": 34.5, "differences": []},
        "thing_classes": ["disc", "square"], "category_ids": [1, 2], "results": {"bbox": box, "segm": box},
    }  # fmt: skip


def analysis():
    objects = {"objects": 3, "AP": 9.0, "AP50": 20.0, "AP75": None, "APs": 1.0, "APm": 2.0, "APl": None, "AR": 20.0}
    curves = {"recall": CURVE, "0.50": CURVE, "0.75": CURVE, "0.50:0.95": [None, *CURVE[1:]]}
    sizes = {size: {"AP": 9.0, "AR": None} for size in ("all", "small", "medium", "large")}
    task = {"sizes": sizes, "per_class": {"disc": objects, "square": objects}, "curves": curves}
    matrix = {"threshold": 0.5, "iou": 0.5, "classes": ["disc", "square"], "matrix": [[1, 2], [3, 4]]}
    return {"dataset": "demo_val", "classes": ["disc", "square"], "images": 2, "objects": 6, "detections": 9,
            "tasks": {"bbox": task, "segm": task}, "confusion": matrix}  # fmt: skip


def linear_results():
    row = {"top1": 50.5, "top5": 90.0, "lr": 0.03, "held_out_top1": 49.0, "sweep": {"0.03": {"top1": 50.5}}}
    protocol = {"features": "central crops, cached", "base_lr": [0.03, 0.1, 0.3], "chosen_on": "held-out", "seed": 1}
    images = {"train": 90, "test": 50, "classes": 10, "held_out": 9}
    weights = {"path": "output/loco/model_final.pth", "sha256": SHA, "arch": "resnet18"}
    return {"kind": "linear", "protocol": protocol, "weights": weights, "images": images, "seconds": 3.0,
            "linear": {"res4": row, "res5": row | {"top1": None, "lr": None, "held_out_top1": None}}}  # fmt: skip


def knn_results():
    row = {"top1": 40.0, "top5": 80.0}
    content = {key: value for key, value in linear_results().items() if key not in ("linear", "kind")}
    return content | {"protocol": {"crop_size": 32, "k": [20]}, "knn": {"res5": {"k20_t0.07": row, "k200_t0.1": row}}}


def probe_lines():
    names = [f"{stage}-lr{rate}" for stage in ("res4", "res5") for rate in ("0.1", "1")]
    for i in range(9, 50, 10):
        yield {"iteration": i, "lr": 0.1, "data_time": 0, **{f"train/{name}": 2.0 for name in names}}
        tested = {f"{part}/{name}-top1": 40.0 for name in names for part in ("test", "held_out")}
        yield {"iteration": i, **tested}


@pytest.fixture
def runs(tmp_path, pretraining, detection, readouts, write_lines):
    """Folders of every kind; of each file a good version."""
    done, interrupted = detection
    config = yaml.safe_load((done / "config.yaml").read_text())
    config["PUBLISHED"] = {"ROW": "COCO, LoCo", "BOX_AP": 38.2, "MASK_AP": 34.5}
    (done / "config.yaml").write_text(yaml.safe_dump(config))
    (done / "results.json").write_text(json.dumps(detection_results()))
    (done / "analysis.json").write_text(json.dumps(analysis()))
    shutil.copytree(done, tmp_path / "demo" / "seed0" / "frozen_loco")
    shutil.copytree(done, tmp_path / "demo" / "seed1" / "frozen_loco")
    (readouts[0] / "results.json").write_text(json.dumps(linear_results()))
    (readouts[1] / "results.json").write_text(json.dumps(knn_results()))
    write_lines(readouts[0] / "metrics.json", list(probe_lines()))
    Image.new("RGB", (60, 40), "red").save(readouts[0] / "probe.png")
    return tmp_path


def damage(rng, path, good):
    """Write a changed version of one file."""
    if path.name.endswith(".json") and path.name != "metrics.json" and rng.random() < 0.8:
        path.write_text(json.dumps(changed_values(rng, json.loads(good))))
    elif path.name == "metrics.json" and rng.random() < 0.7:
        lines = [json.loads(line) for line in good.decode().splitlines() if line.endswith("}")]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed_values(rng, lines)))
    elif path.name == "config.yaml" and rng.random() < 0.8:
        path.write_text(yaml.safe_dump(changed_values(rng, yaml.safe_load(good)), allow_unicode=False))
    else:
        path.write_bytes(changed_bytes(rng, good))


class Damaged:
    """Files of the run folders beneath a folder, of which one or two are changed for a case, and then good again."""

    def __init__(self, root, names=None):
        paths = [path for path in sorted(root.rglob("*")) if path.is_file() and (not names or path.name in names)]
        self.files = {path: path.read_bytes() for path in paths}

    def __call__(self, rng):
        for path, good in self.files.items():
            if path.read_bytes() != good:
                path.write_bytes(good)
        for path in rng.sample(list(self.files), rng.choice([1, 1, 2])):
            damage(rng, path, self.files[path])


def finite(value):
    return value is None or math.isfinite(value)


def test_tables_of_damaged_runs(runs, each_case):
    change = Damaged(runs)

    def case(rng):
        change(rng)
        found = find_runs(runs)
        assert len(found) >= 6
        for text in (table_text, seeds_text, readouts_text, pretraining_text):
            text(found)
        render_markdown(found).encode()
        for run in found:
            assert run.state and math.isfinite(run.seconds or 0) and type(run.iterations) in (int, type(None))

    each_case(case, 120)


def test_pages_of_damaged_runs(runs, each_case):
    change = Damaged(runs)

    def case(rng):
        change(rng)
        page = render(find_runs(runs))
        page.encode()
        assert page.endswith("</html>\n")

    each_case(case, 3)


def test_curves_of_damaged_metrics(tmp_path, pretraining, readouts, write_lines, each_case):
    write_lines(readouts[0] / "metrics.json", list(probe_lines()))
    change, out = Damaged(tmp_path, ["metrics.json"]), tmp_path / "out.png"

    def case(rng):
        change(rng)
        out.unlink(missing_ok=True)
        if rng.random() < 0.5:
            drawn = draw_losses(pretraining / "metrics.json", out, rng.choice([None, 5.0]))
        else:
            drawn = draw_probe(readouts[0] / "metrics.json", out, [0.1, 1.0])
        assert drawn == out.is_file()
        if drawn:
            with Image.open(out) as picture:
                picture.load()

    each_case(case, 15)


def test_readouts_of_a_card(runs, detection, readouts, each_case):
    change = Damaged(runs, ["results.json", "config.yaml"])

    def case(rng):
        change(rng)
        for folder, kind in ((readouts[0], "linear"), (readouts[1], "knn"), (detection[0], "detection")):
            try:
                found = read_readout(folder, kind, SHA)
            except ValueError as error:
                one_line(error, folder)
                continue
            assert found.table.rows and all(finite(value) for *_, value in found.figures)
            assert all(isinstance(text, str) for row in found.table.texts() for text in row.values())

    each_case(case, 250)


def test_mean_over_splits(runs, detection, each_case):
    cfg = get_detectron2_cfg()
    add_loco_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2017_train_1k_seed0",), ("coco_2017_val",)
    cfg.PUBLISHED.ROW = "COCO, LoCo"
    folders = {f"seed{i}": runs / "demo" / f"seed{i}" / "frozen_loco" for i in range(2)}
    change = Damaged(runs / "demo", ["results.json", "config.yaml", "metrics.json"])

    def case(rng):
        change(rng)
        try:
            summary = low_shot_summary.summarize(cfg, folders)
        except (ValueError, OSError) as error:
            one_line(error, runs)
            return
        json.dumps(summary, allow_nan=False)
        low_shot_summary.text(summary).encode()

    each_case(case, 150)


def test_classes_of_a_run(tmp_path, each_case):
    cfg = get_detectron2_cfg()
    add_loco_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = 2, (), ()
    cfg.DATASETS.CUSTOM.TRAIN_JSON = str(tmp_path / "custom.json")
    categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
    (tmp_path / "custom.json").write_text(json.dumps({"categories": categories}))
    known = {key: detection_results()[key] for key in ("results", "thing_classes", "category_ids")}
    (tmp_path / "results.json").write_text(json.dumps(known))
    change = Damaged(tmp_path)

    def case(rng):
        change(rng)
        if rng.random() < 0.3:
            (tmp_path / "results.json").write_text("{}")
        try:
            names, ids = run_classes(cfg, tmp_path)
        except (ValueError, OSError) as error:
            one_line(error, tmp_path)
            return
        assert len(names) == len(ids) == 2 and all(isinstance(name, str) for name in names)
        assert all(type(i) is int for i in ids) and ids[0] != ids[1]

    each_case(case, 300)


@pytest.fixture
def finished(pretraining):
    cfg = get_cfg()
    keys = ["MODEL.ENCODER", "resnet18x0.25", "MODEL.DECODER.HIDDEN_DIM", 8, "MODEL.DECODER.OUT_DIM", 4]
    cfg.merge_from_list([*keys, "OUTPUT_DIR", str(pretraining)])
    AtomicCheckpointer(cfg, build_learner(cfg), 12).save("model_final", iteration=8)
    (pretraining / "log.txt").write_text("[01/01] sys.platform   linux\nPyTorch     2.14 @/x\nGPU 0,1   H200\n")
    for stamp in (1700000000, 9**30):
        (pretraining / f"events.out.tfevents.{stamp}.a.1.0").touch()
    return pretraining


def test_texts_of_a_pretraining_run(finished, each_case):
    change = Damaged(finished, ["metrics.json", "command.txt", "log.txt", "last_checkpoint"])
    torch.set_num_threads(1)

    def case(rng):
        change(rng)
        try:
            run = PretrainingRun(finished)
        except (ValueError, OSError) as error:
            one_line(error, finished)
            return
        assert run.seconds is None or math.isfinite(run.seconds)
        f"{run.command}{run.begun}{run.environment}".encode()

    each_case(case, 100)

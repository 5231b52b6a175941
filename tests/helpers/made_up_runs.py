"""Made-up run folders, for the tests of what is read, drawn and written of them."""

import json
import math

import pytest
import yaml
from PIL import Image


@pytest.fixture
def training_line():
    def line(iteration, **more):
        usual = {"iteration": iteration, "total_loss": 2.0, "loss_mask": 0.7, "data_time": 0, "lr": 0.01, "time": 0.5}
        return usual | more

    return line


@pytest.fixture
def write_lines():
    """Write a metrics.json; ``tail`` is added as it is."""

    def write(path, lines, tail=""):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)

    return write


@pytest.fixture
def pretraining(tmp_path, write_lines):
    folder = tmp_path / "demo" / "loco"
    folder.mkdir(parents=True)
    decoder = {"CONV_BLOCKS": 1, "DOWNSAMPLE": True, "HIDDEN_DIM": 512, "OUT_DIM": 128}
    model = {"ENCODER": "resnet18", "UNITS": [["res2", "res3"], ["res3", "res4"]], "DECODER": decoder}
    (folder / "config.yaml").write_text(yaml.safe_dump({"MODEL": model, "SOLVER": {"IMS_PER_BATCH": 64}}))
    lines = [
        {"iteration": i, "loss_res3": 5 - i / 100, "loss_res4": 5 - i / 50, "total_loss": 10 - 3 * i / 100}
        for i in range(19, 100, 20)
    ]
    lines = [line | {"data_time": 0, "time": 2} for line in lines]
    write_lines(folder / "metrics.json", lines, tail='{"iteration": 119, "loss_re')
    Image.new("RGB", (60, 40), "red").save(folder / "views.png")
    (folder / "command.txt").write_text("python tools/pretrain.py A.B '<x>'\n")
    return folder


@pytest.fixture
def detection(tmp_path, pretraining, training_line, write_lines):
    """Frozen LoCo features, evaluated twice, and a fine-tuned run that was interrupted."""
    done, interrupted = tmp_path / "demo" / "frozen", tmp_path / "demo" / "finetune"
    config = {
        "MODEL": {"META_ARCHITECTURE": "GeneralizedRCNN", "WEIGHTS": "", "RESNETS": {"DEPTH": 18}},
        "SOLVER": {"MAX_ITER": 300, "IMS_PER_BATCH": 2},
        "DATASETS": {"TEST": ["demo_val"]},
    }
    for folder in (done, interrupted):
        (folder / "pictures").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        write_lines(folder / "metrics.json", [training_line(i) for i in range(19, 120, 20)])
    write_lines(
        done / "metrics.json",
        [training_line(19), training_line(39), {"iteration": 29, "bbox/AP": 1.0, "segm/AP": math.nan}]
        + [training_line(299), {"iteration": 300, "bbox/AP": 12.34, "segm/AP": 10.06}],
    )
    box = {"AP": 12.34, "AP50": 30.06, "AP75": 7, "APs": None, "APm": 10.0, "APl": 20.0, "AP-square": 9.0}
    results = {
        "kind": "detection", "dataset": "demo_val", "iteration": 300, "weights": str(pretraining / "backbone.pkl"),
        "frozen": True, "backbone": "ResNet-18", "seconds": 123.4,
        "results": {"bbox": box, "segm": box | {"AP": 10.06}},
    }  # fmt: skip
    (done / "results.json").write_text(json.dumps(results))
    Image.new("RGB", (400, 200), "blue").save(done / "pictures" / "000_a<b.png")
    return done, interrupted


@pytest.fixture
def readouts(tmp_path, write_lines):
    """A linear readout and kNN of the same checkpoint, and a linear readout that was interrupted."""
    weights = {"path": "output/loco/model_final.pth", "sha256": "0" * 64, "arch": "resnet18"}
    config = {"DATASETS": {"TRAIN": "nette/train", "TEST": "nette/val"}, "FEATURES": {"CACHED": True}}
    diverged = {"top1": None, "top5": None, "lr": None}
    linear = {"res4": {"top1": 50.5, "top5": 90.0, "lr": 0.03}, "res5": diverged}
    knn = {"res5": {"k20_t0.07": {"top1": 40.0, "top5": 80.0}, "k200_t0.1": {"top1": None, "top5": None}}}
    found = {
        "linear": {"protocol": {"chosen_on": "held-out"}, "weights": weights, "linear": linear, "seconds": 3.0},
        "knn": {"protocol": {"leave_one_out": True}, "weights": weights, "knn": knn},
        "begun": None,
    }
    folders = [tmp_path / "readouts" / name for name in found]
    for folder in folders:
        folder.mkdir(parents=True)
        config["DATASETS"]["TEST"] = "" if folder.name == "knn" else "nette/val"
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        if found[folder.name]:
            (folder / "results.json").write_text(json.dumps(found[folder.name]))
    write_lines(folders[2] / "metrics.json", [{"iteration": 19, "lr": 0.1, "loss_res5": 1.0, "data_time": 0}])
    Image.new("RGB", (1170, 900), "red").save(folders[0] / "probe.png")
    return folders

"""tools/model_card.py as a user runs it, on a run of tools/pretrain.py."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

SMALL = ("MODEL.ENCODER", "resnet18", "INPUT.CROP_SIZE", 32, "MODEL.DECODER.HIDDEN_DIM", 32, "MODEL.DEVICE", "cpu",
         "SOLVER.IMS_PER_BATCH", 4, "SOLVER.EPOCHS", 2.0, "SOLVER.WARMUP_EPOCHS", 1.0, "SOLVER.LOG_PERIOD", 1,
         "KNN.PERIOD", 2.0, "KNN.K", 3, "DATALOADER.NUM_WORKERS", 0)  # fmt: skip


@pytest.fixture(scope="module")
def run(run_tool, tmp_path_factory):
    """Four iterations on eight images of two classes, which kNN reads as well."""
    folder = tmp_path_factory.mktemp("model_card")
    rng = np.random.default_rng(0)
    for i in range(8):
        path = folder / "my_images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    data = ("DATASETS.TRAIN", folder / "my_images", "KNN.TRAIN", folder / "my_images")
    config = ("--config-file", "configs/pretrain/imagenet/resnet50_loco_800ep.yaml")
    done = run_tool("pretrain.py", *config, *data, "OUTPUT_DIR", folder / "loco", *SMALL)
    assert done.returncode == 0, done.stderr
    return folder / "loco"


@pytest.fixture(scope="module")
def linear(run):
    folder = run.parent / "probe"
    folder.mkdir()
    sha256 = hashlib.sha256((run / "model_final.pth").read_bytes()).hexdigest()
    row = {"top1": 62.5, "lr": 3.0, "held_out_top1": None, "sweep": {"3": {"top1": 62.5, "held_out_top1": None}}}
    content = {"protocol": {"base_lr": [3.0], "chosen_on": None}, "weights": {"sha256": sha256},
               "images": {"train": 8, "held_out": 0, "test": 8, "classes": 2}, "linear": {"res5": row}}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_card_of_a_run(run_tool, run, linear, tmp_path):
    card = tmp_path / "card.md"
    options = ("--linear", linear, "--name", "Small LoCo", "--license", "cc0-1.0", "--output", card)
    done = run_tool("model_card.py", run, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {card}\n" and (tmp_path / "card_losses.png").is_file()
    text = card.read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc0-1.0" and front["model-index"][0]["name"] == "Small LoCo"
    assert front["datasets"] == ["my_images"]
    weights = run / "model_final.pth"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in text and f"{weights.stat().st_size:,} bytes" in text
    metrics = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    steps = [entry for entry in metrics if "lr" in entry]
    for name in ("loss_res3", "loss_res4", "loss_res5"):
        row = f"| {name} | {steps[0][name]:.4f} | 1 | {steps[-1][name]:.4f} | 4 |"
        assert row.split() in map(str.split, text.splitlines())
    knn = next(entry for entry in reversed(metrics) if "knn/res5-top1" in entry)
    assert f"res5 {knn['knn/res5-top1']:.1f}." in text and "(`my_images`, k 3, temperature 0.07)" in text
    times = {entry["iteration"] + 1: entry["time"] for entry in steps if "time" in entry}  # the timer begins late
    lengths = [end - begin for begin, end in zip([0, *times], times, strict=False)]
    assert f"({sum(t * n for t, n in zip(times.values(), lengths, strict=True)):,.1f} s)" in text
    assert f"{torch.load(weights, weights_only=True)['run']['images']} images, no labels" in text
    cells = re.sub(" +", " ", text)  # columns are padded
    assert re.search(r"begun \| 20\d\d-\d\d-\d\d \(UTC\)", cells)
    assert "| steps | 4 (2 epochs) |" in cells and "| res5 | 62.5 | 3 |" in cells
    assert "chosen, for each stage by itself, not at all: there was one only" in text
    assert str(run.parent) not in text and "DATASETS.TRAIN path/to/my_images" in text


def test_a_refusal_is_one_line_and_exit_code_2(run_tool, run, linear, tmp_path):
    content = json.loads((linear / "results.json").read_text())
    content["weights"]["sha256"] = "0" * 64
    (tmp_path / "results.json").write_text(json.dumps(content))
    done = run_tool("model_card.py", run, "--linear", linear, tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "holds results of another checkpoint" in done.stderr
    assert not (run / "model_card.md").exists()

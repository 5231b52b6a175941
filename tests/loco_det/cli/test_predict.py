"""tools/predict.py as a user runs it: a trained run's folder, images, and one line for bad input."""

import json

import pytest
import torch
from detectron2.config import get_cfg
from narrow import NARROW
from PIL import Image

from loco_det.config import add_loco_config
from loco_det.engine.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file("configs/demo_coco_loco_frozen.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64, *NARROW])
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    Image.new("RGB", (96, 64), "red").save(folder / "a.png")
    (folder / "torn.png").write_bytes(b"junk")
    return folder


def test_writes_pictures_and_predictions(run_tool, run, tmp_path):
    options = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 3]
    done = run_tool("predict.py", run, run / "a.png", run / "torn.png", "--output", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert f"1 images, 1 unreadable skipped, 3 detections: {tmp_path / 'out'}" in done.stdout
    assert f"skipped {run / 'torn.png'}: not an image, or a damaged one" in done.stdout
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]) == 3
    assert [p.name for p in (tmp_path / "out" / "pictures").iterdir()] == ["a.jpg"]


def test_bad_input_gets_one_line(run_tool, run, tmp_path):
    half = ("--threshold", 0.5)  # ends the images
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.yaml").write_text("MODEL:\n  ENCODER: resnet18\n")
    for arguments, message in (
        ((tmp_path, run / "a.png"), "no config.yaml in it"),
        ((tmp_path / "encoder", run / "a.png"), "is of no detector: name a run folder of tools/train_net.py"),
        ((run, run / "a.png", *half, "MODEL.DEVIC", "cpu"), "MODEL.DEVIC"),
        ((run, run / "a.png", *half, "MODEL.WEIGHTS", "x.pth"), "the weights are those of the run"),
        ((run, run / "a.png", *half, "MODEL.META_ARCHITECTURE", "os.system"), "names what is not there: No object"),
    ):
        done = run_tool("predict.py", "--output", tmp_path / "out", *arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ") and message in done.stderr and not (tmp_path / "out").exists()


def test_unknown_option(run_tool, run, tmp_path):
    done = run_tool("predict.py", run, run / "a.png", "--output", tmp_path / "out", "--treshold", 0.5)
    assert done.returncode == 2 and "unknown option --treshold" in done.stderr

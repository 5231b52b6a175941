"""tools/light_head.py as a user runs it, on a few generated scenes: files, resume, evaluation, guards."""

import json
import logging
import shlex
import signal

import pytest
import torch
from run_files import metrics, results

from loco_det.convert import convert
from loco_det.demo_scenes.writing import make_demo_data
from loco_det.engine.light_trainer import LightTrainer
from loco_det.report.runs import detection_table
from loco_det.runs.folder import read_run
from pretrain.encoders import build_encoder

TINY = ("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4,
        "SOLVER.CHECKPOINT_PERIOD", 2, "MODEL.LIGHT_HEAD.WIDTH", 32, "TEST.NUM_PICTURES", 1, "SEED", 1,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 10, "TEST.PICTURE_THRESHOLD", 0.0,
        "TEST.PRECISE_BN.NUM_ITER", 1)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Demo scenes and converted random weights."""
    root = tmp_path_factory.mktemp("data")
    layouts = ("coco", "cityscapes", "voc")
    make_demo_data(root / "demo", num_train=6, num_val=4, size=(64, 96), workers=1, layouts=layouts)
    torch.manual_seed(0)
    torch.save(build_encoder("resnet18").state_dict(), root / "r18.pth")
    convert(str(root / "r18.pth"), str(root / "r18.pkl"))
    return root


def arguments(data, out, *more, custom=True):
    found = []
    for split, name in (("TRAIN", "train"), ("TEST", "val")) if custom else ():
        found += [f"DATASETS.CUSTOM.{split}_JSON", data / f"demo/coco/annotations/instances_{name}.json"]
        found += [f"DATASETS.CUSTOM.{split}_IMAGES", data / "demo/coco" / name]
    common = ["--config-file", "configs/evaluate/light_small.yaml", *TINY, "MODEL.WEIGHTS", data / "r18.pkl"]
    return [*common, "OUTPUT_DIR", out, "MODEL.LIGHT_HEAD.FEATURES", data / "features", *found, *more]


@pytest.fixture
def in_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Detectron2's handlers hold streams that are closed


def named(out, *options):
    """With a name of its own for the data, which one process registers once."""
    return [*options, "DATASETS.CUSTOM.NAME", f"{out.parent.name}_{out.name}"]


@pytest.fixture(scope="module")
def trained(run_tool, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    done = run_tool("light_head.py", *arguments(data, out))
    assert done.returncode == 0, done.stderr
    return out


def test_files_of_a_run(trained, data):
    names = {path.name for path in trained.iterdir()}
    assert names >= {"config.yaml", "command.txt", "log.txt", "metrics.json", "model_final.pth", "analysis.json"}
    found = results(trained)
    assert found["detector"] == "light head" and found["heads_norm"] == "BN, GN" and found["frozen"]
    assert found["dataset"] == "custom_test" and found["iteration"] == 4 and not found["problems"]
    assert set(found["results"]) == {"bbox"} and "AP50" in found["results"]["bbox"]
    assert list(json.loads((trained / "analysis.json").read_text())["tasks"]) == ["bbox"]
    assert {d["image_id"] for d in json.loads((trained / "inference/coco_instances_results.json").read_text())} <= {
        1, 2, 3, 4
    }  # fmt: skip
    assert len(list((trained / "pictures").glob("*.png"))) == 1 and not (trained / "features").exists()
    assert len(list((data / "features").rglob("*.pth"))) >= 2 * 6 + 4


def test_a_report_does_not_take_it_for_a_mask_rcnn(trained):
    (row,) = detection_table([read_run(trained)]).rows
    assert row["schedule"] == "light head, 4 x 2 images"


def test_features_and_images_give_the_same_figures(run_tool, data, trained, tmp_path):
    """Evaluated from images, without any stored feature: scores to the precision of the storage."""
    done = run_tool("light_head.py", "--eval-only", *arguments(data, tmp_path), "MODEL.WEIGHTS",
                    trained / "model_final.pth")  # fmt: skip
    assert done.returncode == 0, done.stderr
    scores = []
    for folder in (trained, tmp_path):
        found = json.loads((folder / "inference/coco_instances_results.json").read_text())
        scores.append([max(d["score"] for d in found if d["image_id"] == i) for i in range(1, 5)])
    assert torch.allclose(*map(torch.tensor, scores), atol=0.002)


def state(out, name="model_final"):
    found = torch.load(out / f"{name}.pth", weights_only=True)
    return found["model"], found["trainer"]["_trainer"]["optimizer"]["state"], found["iteration"]


def alike(one, other):
    """Whether two states are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_seed_gives_the_same_weights(call_tool, data, trained, tmp_path, in_checkout):
    out, other = tmp_path / "same", tmp_path / "other"
    assert call_tool("light_head", *named(out, *arguments(data, out))) == 0
    assert call_tool("light_head", *named(other, *arguments(data, other)), "SEED", 2) == 0
    assert all(map(alike, state(out), state(trained))) and not alike(state(other)[0], state(trained)[0])
    assert results(out)["results"] == results(trained)["results"]


KILLED = """
import os, runpy, signal, sys
from loco_det.engine import feature_store
from loco_det.engine.trainer import Trainer
place, step, write, count = sys.argv[1], Trainer.run_step, feature_store.FeatureStore._write, []
def run_step(self):
    if place == "training" and self.iter == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)
def _write(self, *args):
    count.append(1)
    if place == "features" and len(count) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *args)
Trainer.run_step, feature_store.FeatureStore._write, sys.argv = run_step, _write, sys.argv[1:]
runpy.run_path("tools/light_head.py", run_name="__main__")
"""


def killed(run_tool, folder, place, *options):
    script = folder / "killed.py"
    script.write_text(KILLED)
    done = run_tool(script, place, *options, OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.fault("killed")
def test_a_killed_training_goes_on_to_the_bit(run_tool, data, trained, tmp_path):
    out = tmp_path / "out"
    killed(run_tool, tmp_path, "training", *arguments(data, out))
    assert (out / "last_checkpoint").read_text() == "model_0000001.pth" and not (out / "results.json").exists()
    done = run_tool("light_head.py", "--resume", *arguments(data, out), OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert done.returncode == 0 and "Starting training from iteration 2" in done.stdout, done.stderr
    assert all(map(alike, state(out), state(trained))) and results(out)["results"] == results(trained)["results"]


@pytest.mark.fault("killed")
def test_a_run_killed_over_its_features_starts_anew(run_tool, data, trained, tmp_path):
    """The same command goes on with those that are there."""
    out, features = tmp_path / "out", ("MODEL.LIGHT_HEAD.FEATURES", tmp_path / "features")
    killed(run_tool, tmp_path, "features", *arguments(data, out, *features))
    assert len(list((tmp_path / "features").rglob("*.pth"))) == 4
    done = run_tool("light_head.py", *arguments(data, out, *features), OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert done.returncode == 0 and "features of 2 images are read" in done.stdout, done.stderr
    assert all(map(alike, state(out), state(trained)))


def test_parts_of_the_data(call_tool, data, tmp_path, in_checkout):
    """Drawn by hash, in the log and in the results; and the run goes on with its own config.yaml."""
    out = tmp_path / "out"
    options = named(out, *arguments(data, out, "MODEL.LIGHT_HEAD.TRAIN_IMAGES", 4, "MODEL.LIGHT_HEAD.TEST_IMAGES", 2))
    assert call_tool("light_head", *options) == 0
    found = results(out)
    assert found["train_dataset"].endswith("_train_drawn4") and found["dataset"].endswith("_test_drawn2")
    log = (out / "log.txt").read_text()
    assert "features of 4 images" in log and "features of 2 images" in log
    detected = json.loads((out / "inference/coco_instances_results.json").read_text())
    assert len({d["image_id"] for d in detected}) == 2


@pytest.mark.parametrize(("names", "message"), [
    (("voc_2007_trainval", "voc_2007_test"), None),
    (("cityscapes_fine_instance_seg_train", "cityscapes_fine_instance_seg_val"), "Cityscapes' evaluator needs masks"),
])  # fmt: skip
def test_other_layouts(run_tool, data, tmp_path, names, message):
    out = tmp_path / "out"
    train, test = names
    more = ("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)", "MODEL.ROI_HEADS.NUM_CLASSES",
            8 if message else 20, "MODEL.LIGHT_HEAD.FEATURES", tmp_path / "features")  # fmt: skip
    folder = data / "demo" / ("voc" if message is None else "")
    done = run_tool("light_head.py", *arguments(data, out, *more, custom=False), DETECTRON2_DATASETS=str(folder))
    if message is None:
        assert done.returncode == 0, done.stderr
        assert set(results(out)["results"]) == {"bbox", "bbox_coco"}
    else:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and message in done.stderr and not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"],
            "MODEL.META_ARCHITECTURE is GeneralizedRCNN: this needs",
        ),
        (["MODEL.MASK_ON", True], "set MODEL.MASK_ON False"),
        (["MODEL.BACKBONE.FREEZE_AT", 2], "set MODEL.BACKBONE.FREEZE_AT 5"),
        (["MODEL.WEIGHTS", "gone.pkl"], "gone.pkl: no such file"),
        (["INPUT.RANDOM_FLIP", "vertical"], "the light head takes horizontal or none"),
        (["MODEL.LIGHT_HEAD.TRAIN_IMAGES", -1], "-1 images cannot be drawn"),
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], "the light head has TrainingSampler"),
        (["MODEL.LIGHT_HEAD.FEATURES", "README.md/features"], "README.md"),
    ],
)
def test_bad_input_gets_one_line(call_tool, data, tmp_path, in_checkout, capsys, change, message):
    out = tmp_path / "out"
    assert call_tool("light_head", *named(out, *arguments(data, out, *change))) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and message in error.splitlines()[-1] and not list(out.glob("*.pth"))


def test_no_run_over_a_finished_one(call_tool, data, trained, in_checkout, capsys):
    assert call_tool("light_head", *named(trained, *arguments(data, trained))) == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_what_failed_is_done_again_by_the_command_that_is_named(call_tool, data, tmp_path, in_checkout, capsys,
                                                                 monkeypatch):  # fmt: skip
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(LightTrainer, "_test", lambda *_: 1 / 0)
        assert call_tool("light_head", *named(out, *arguments(data, out))) == 1
    *_, command = capsys.readouterr().err.partition("this goes on: python tools/light_head.py ")
    assert call_tool("light_head", *named(tmp_path / "again", *shlex.split(command))) == 0
    assert results(out)["results"]["bbox"]["AP"] is not None


def test_losses_are_logged(trained):
    assert {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr", "lr"} <= metrics(trained)[0].keys()


def test_several_processes_are_refused(run_tool, data, tmp_path):
    done = run_tool("light_head.py", "--num-gpus", 2, *arguments(data, tmp_path / "out"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr

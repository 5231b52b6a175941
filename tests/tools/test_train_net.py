"""tools/train_net.py as a user runs it, on a few generated scenes: files, resume, evaluation, guards."""

import json

import pytest
import torch
from PIL import Image

from loco_det.convert import convert
from loco_det.data.demo import make_demo_data
from pretrain.encoders import build_encoder

TINY = ("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)", "SOLVER.CHECKPOINT_PERIOD", 1, "DATALOADER.NUM_WORKERS", 0,
        "TEST.PRECISE_BN.NUM_ITER", 1, "TEST.NUM_PICTURES", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
        "TEST.DETECTIONS_PER_IMAGE", 10, "TEST.PICTURE_THRESHOLD", 0.0)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Demo scenes and converted random weights."""
    root = tmp_path_factory.mktemp("data")
    layouts = ("coco", "cityscapes")
    make_demo_data(root / "demo", num_train=4, num_val=3, size=(64, 96), workers=1, layouts=layouts)
    torch.manual_seed(0)
    torch.save(build_encoder("resnet18").state_dict(), root / "r18.pth")
    convert(str(root / "r18.pth"), str(root / "r18.pkl"))
    return root


def arguments(data, out, config="demo_coco_loco_frozen"):
    coco, custom = data / "demo" / "coco", []
    if "coco" in config:
        for split, name in (("TRAIN", "train"), ("TEST", "val")):
            custom += [f"DATASETS.CUSTOM.{split}_JSON", coco / f"annotations/instances_{name}.json"]
            custom += [f"DATASETS.CUSTOM.{split}_IMAGES", coco / name]
    common = ["--config-file", f"configs/{config}.yaml", *TINY, "MODEL.WEIGHTS", data / "r18.pkl", "OUTPUT_DIR", out]
    return [*common, *custom]


@pytest.fixture(scope="module")
def trained(run_tool, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    done = run_tool("train_net.py", *arguments(data, out))
    assert done.returncode == 0, done.stderr
    return out


def results(out):
    return json.loads((out / "results.json").read_text())


def test_files_of_a_run(trained):
    names = {p.name for p in trained.iterdir()}
    assert names >= {"config.yaml", "command.txt", "log.txt", "metrics.json", "model_final.pth", "results.json"}
    found = results(trained)
    assert found["dataset"] == "demo_test" and found["frozen"] and found["iteration"] == 2
    assert found["backbone"] == "ResNet-18" and found["seconds"] > 0
    assert set(found["results"]) == {"bbox", "segm"} and "AP50" in found["results"]["segm"]
    pictures = sorted((trained / "pictures").glob("*.png"))
    assert len(pictures) == 2 and all(Image.open(p).size[0] > 480 for p in pictures)


def test_a_frozen_backbone_stays_what_it_was(trained, data):
    model = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    source = torch.load(data / "r18.pth", weights_only=True)
    assert torch.equal(model["backbone.bottom_up.res5.1.conv2.weight"], source["layer4.1.conv2.weight"])
    assert torch.equal(model["backbone.bottom_up.stem.conv1.norm.running_mean"], source["bn1.running_mean"])


def test_evaluation_of_the_result_gives_the_same_numbers(run_tool, trained, data, tmp_path):
    weights = ("MODEL.WEIGHTS", trained / "model_final.pth")
    done = run_tool("train_net.py", "--eval-only", *arguments(data, tmp_path), *weights)
    assert done.returncode == 0, done.stderr
    name = "inference/coco_instances_results.json"
    ours, theirs = (json.loads((out / name).read_text()) for out in (tmp_path, trained))
    assert ours == theirs and len(ours) > 0
    same = ("results", "weights", "iteration", "frozen")  # what was trained is what is reported, not the last step
    assert {k: results(tmp_path)[k] for k in same} == {k: results(trained)[k] for k in same}
    assert results(tmp_path)["seconds"] == pytest.approx(results(trained)["seconds"], rel=0.5)


def test_resume_goes_on_and_fine_tuning_changes_the_backbone(run_tool, data, tmp_path):
    options = arguments(data, tmp_path, "demo_coco_loco_finetune")
    assert run_tool("train_net.py", *options, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "()").returncode == 0
    before = results(tmp_path)
    done = run_tool("train_net.py", "--resume", *options, "MODEL.WEIGHTS", "")
    assert done.returncode == 0 and "Starting training from iteration 1" in done.stdout
    after = results(tmp_path)
    assert after["weights"] == before["weights"] == str(data / "r18.pkl") and after["iteration"] == 2
    assert after["seconds"] > before["seconds"]
    model = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    source = torch.load(data / "r18.pth", weights_only=True)
    for ours, theirs in (("stem.conv1.weight", "conv1.weight"), ("res5.1.conv2.weight", "layer4.1.conv2.weight")):
        assert not torch.equal(model[f"backbone.bottom_up.{ours}"], source[theirs])


def test_cityscapes_layout(run_tool, data, tmp_path):
    done = run_tool("train_net.py", *arguments(data, tmp_path / "out", "demo_cityscapes_loco_frozen"),
                    DETECTRON2_DATASETS=str(data / "demo"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "out")
    assert found["dataset"] == "cityscapes_fine_instance_seg_val" and "AP" in found["results"]["segm"]
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["MODEL.WEIGHTS", "/nowhere.pkl"], "/nowhere.pkl: no such file"),
        (["MODEL.WEIGHTS", "README.md"], "README.md is not a checkpoint"),
        (["MODEL.RESNETS.DEPTH", "34"], "tensors of the backbone"),
        (["MODEL.RESNETS.DEPT", "34"], "MODEL.RESNETS.DEPT"),
        (["--eval-only"], "tensors of the detector"),
        (["--resume"], "nothing to resume"),
        (["--num-gpus", "2", "--dist-url", "auto"], "--num-gpus above 1 needs GPUs"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "8"], "SOLVER.IMS_PER_BATCH 2 is no multiple"),
    ],
)
def test_bad_input_gets_one_line(run_tool, data, tmp_path, change, message):
    flags, pairs = (change, []) if change[0].startswith("--") else ([], change)
    options = arguments(data, tmp_path)
    done = run_tool("train_net.py", *flags, *options, *pairs)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr and not list(tmp_path.glob("*.pth"))


def test_no_data_where_detectron2_datasets_points(run_tool, data, tmp_path):
    done = run_tool("train_net.py", "--config-file", "configs/coco_loco_frozen.yaml", "OUTPUT_DIR", tmp_path,
                    "MODEL.WEIGHTS", data / "r18.pkl", DETECTRON2_DATASETS=str(tmp_path))  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "coco_2017_train" in done.stderr and "DETECTRON2_DATASETS" in done.stderr


def test_random_weights_only_by_name(run_tool, data, tmp_path):
    done = run_tool("train_net.py", *arguments(data, tmp_path), "MODEL.WEIGHTS", "random", "SOLVER.MAX_ITER", 1,
                    "SOLVER.STEPS", "()")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "starts from a random initialisation" in done.stdout and results(tmp_path)["weights"] == "random"

"""tools/train_net.py as a user runs it, on a few generated scenes: files, resume, evaluation, guards."""

import json
import logging
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import sys
import time

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from narrow import NARROW
from PIL import Image
from run_files import results

from loco_det.convert import convert
from loco_det.demo_scenes.writing import make_demo_data
from loco_det.engine.hooks import SamePreciseBN
from loco_det.engine.trainer import Trainer
from loco_det.evaluation.coco import FastCOCOEvaluator
from pretrain.encoders import build_encoder
from pretrain.engine import estimate

TINY = ("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)", "SOLVER.CHECKPOINT_PERIOD", 1, "DATALOADER.NUM_WORKERS", 0,
        "TEST.PRECISE_BN.NUM_ITER", 1, "TEST.NUM_PICTURES", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
        "TEST.DETECTIONS_PER_IMAGE", 10, "TEST.PICTURE_THRESHOLD", 0.0, *NARROW)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Demo scenes and converted random weights."""
    root = tmp_path_factory.mktemp("data")
    layouts = ("coco", "cityscapes", "voc")
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


def test_files_of_a_run(trained):
    names = {p.name for p in trained.iterdir()}
    assert names >= {"config.yaml", "command.txt", "log.txt", "metrics.json", "model_final.pth", "results.json"}
    found = results(trained)
    assert found["dataset"] == "demo_test" and found["frozen"] and found["iteration"] == 2
    assert found["backbone"] == "ResNet-18" and found["seconds"] > 0
    assert set(found["results"]) == {"bbox", "segm"} and "AP50" in found["results"]["segm"]
    pictures = sorted((trained / "pictures").glob("*.png"))
    assert len(pictures) == 2 and all(Image.open(p).size[0] > 480 for p in pictures)


def test_a_finished_run_is_not_overwritten(call_tool, in_checkout, trained, data, capsys):
    before = {p: p.stat().st_mtime_ns for p in trained.iterdir()}
    assert call_tool("train_net", *arguments(data, trained)) == 2
    assert f"error: {trained} holds a finished run, whose model_final.pth would be lost" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in trained.iterdir()} == before


def test_an_evaluation_that_fails_does_not_lose_the_training(
    call_tool, in_checkout, trained, data, tmp_path, monkeypatch, capsys
):
    """Whether it fails while the network trains or in the end; the printed command gives the run's results."""
    calls = []
    _forget_custom_data()  # of another test in this process

    def fail(*_):
        calls.append(len(calls))
        raise KeyError("area")

    with monkeypatch.context() as patch:
        patch.setattr(FastCOCOEvaluator, "evaluate", fail)
        out = tmp_path / "run"
        options = ["SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, "SEED", 7]
        assert call_tool("train_net", *arguments(data, out), *options) == 1
    printed = capsys.readouterr()
    assert len(calls) == 2 and "demo_test failed: KeyError: 'area'" in printed.out
    assert printed.err.startswith("error: evaluation on demo_test: KeyError: 'area'. ") and printed.err.count("\n") == 1
    assert results(out)["problems"] == ["evaluation on demo_test: KeyError: 'area'"]
    assert results(out)["results"] == {} and results(out)["iteration"] == 2 and (out / "pictures").is_dir()
    *_, command = printed.err.partition("this goes on: python tools/train_net.py ")
    _forget_custom_data()
    assert call_tool("train_net", *shlex.split(command)) == 0
    assert results(out)["results"]["segm"]["AP"] >= 0 and results(out)["problems"] == []
    assert results(out)["iteration"] == 2 and (out / "analysis.png").exists()


def _forget_custom_data():
    for name in {"demo_train", "demo_test"} & {*DatasetCatalog.list()}:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


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


def test_evaluation_in_the_folder_of_a_run_whose_training_data_are_gone(
    call_tool, in_checkout, trained, data, tmp_path
):
    """Their masks are RLE, which the config of the run says and the data cannot any more."""
    out = shutil.copytree(trained, tmp_path / "run")
    gone = ("DATASETS.CUSTOM.TRAIN_JSON", "/gone.json", "DATASETS.CUSTOM.TRAIN_IMAGES", "/gone")
    assert call_tool("train_net", "--eval-only", "--resume", *named(out, *arguments(data, out), *gone)) == 0
    assert results(out)["results"] == results(trained)["results"]


def test_resume_goes_on_and_fine_tuning_changes_the_backbone(run_tool, data, tmp_path):
    options = arguments(data, tmp_path, "demo_coco_loco_finetune")
    assert run_tool("train_net.py", *options).returncode == 0
    before = results(tmp_path)
    for name in ("model_final.pth", "model_0000001.pth", "results.json"):  # as if killed in the second iteration
        (tmp_path / name).unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")
    done = run_tool("train_net.py", "--resume", *options, "MODEL.WEIGHTS", "")
    assert done.returncode == 0 and "Starting training from iteration 1" in done.stdout
    after = results(tmp_path)
    assert after["weights"] == before["weights"] == str(data / "r18.pkl") and after["iteration"] == 2
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


@pytest.fixture(scope="module")
def voc_run(run_tool, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("voc") / "out"
    done = run_tool("train_net.py", *arguments(data, out, "demo_voc_loco_frozen"),
                    DETECTRON2_DATASETS=str(data / "demo" / "voc"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_voc_layout(voc_run):
    """Boxes without masks: results by both definitions, analysis and pictures."""
    found = results(voc_run)
    assert (found["train_dataset"], found["dataset"]) == ("voc_2007_trainval, voc_2012_trainval", "voc_2007_test")
    assert list(found["results"]) == ["bbox", "bbox_coco"] and len(found["thing_classes"]) == 20
    assert {"AP", "AP50", "AP75", "AP-person"} <= found["results"]["bbox"].keys() & found["results"]["bbox_coco"].keys()
    assert found["results"]["bbox"]["AP-sheep"] is None and found["results"]["bbox"]["AP"] >= 0
    assert found["problems"] == [] and found["published"] is None
    assert len(list((voc_run / "pictures").glob("*.png"))) == 2
    analysis = json.loads((voc_run / "analysis.json").read_text())
    assert list(analysis["tasks"]) == ["bbox"] and analysis["images"] == 3 and (voc_run / "analysis.png").exists()


def test_voc_in_reports_and_evaluated_again(run_tool, call_tool, voc_run, data, tmp_path, capsys):
    assert call_tool("report", voc_run, "--output", tmp_path / "page.html", "--markdown") == 0
    said = capsys.readouterr().out
    assert "voc_2007_test" in said and "box AP" in said
    before = results(voc_run)["results"]
    done = run_tool("train_net.py", "--config-file", voc_run / "config.yaml", "--eval-only", "--resume",
                    DETECTRON2_DATASETS=str(data / "demo" / "voc"))  # fmt: skip
    assert done.returncode == 0 and results(voc_run)["results"] == before


def test_voc_with_masks_or_elsewhere_is_refused_in_one_line(run_tool, data, tmp_path):
    given = arguments(data, tmp_path / "out", "demo_voc_loco_frozen")
    done = run_tool("train_net.py", *given, "MODEL.MASK_ON", True, DETECTRON2_DATASETS=str(data / "demo" / "voc"))
    assert done.returncode == 2 and "voc_2007_trainval has boxes, no masks: set MODEL.MASK_ON False" in done.stderr
    done = run_tool("train_net.py", *given, DETECTRON2_DATASETS=str(data / "demo"))
    assert done.returncode == 2 and "has to be the folder that holds coco/, cityscapes/, or VOC2007/" in done.stderr


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
        (
            ["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "mps"],
            "SOLVER.AMP.ENABLED True is float16 on a GPU, bfloat16 on",
        ),
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
    on_a_cpu = not torch.cuda.is_available()
    advice = "--config-file configs/detection/cpu_frozen/resnet18_loco.yaml"
    assert (advice in done.stdout) == on_a_cpu  # said before data are looked for


def test_random_weights_only_by_name(run_tool, data, tmp_path):
    done = run_tool("train_net.py", *arguments(data, tmp_path), "MODEL.WEIGHTS", "random", "SOLVER.MAX_ITER", 1,
                    "SOLVER.STEPS", "()")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "starts from a random initialisation" in done.stdout and results(tmp_path)["weights"] == "random"


# --- resume, signals, guards ------------------------------------------------------------------------------------------

STEPS = ("SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "(3,)", "TEST.EVAL_PERIOD", 2)
SIGNALLED = """
import os, runpy, signal, sys
from loco_det.engine.trainer import Trainer
number, at, step = getattr(signal, sys.argv[1]), int(sys.argv[2]), Trainer.run_step
def run_step(self):
    if self.iter == at and os.fork() == 0:  # workers may take it otherwise if it comes from their parent
        os.killpg(0, number)
        os._exit(0)
    if self.iter == at:
        os.wait()
    step(self)
Trainer.run_step, sys.argv = run_step, sys.argv[2:]
runpy.run_path("tools/train_net.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def signalled(run_tool, tmp_path_factory):
    """Train, and send a signal to all processes of the run, loader's workers included, when an iteration begins."""
    script = tmp_path_factory.mktemp("signalled") / "signalled.py"
    script.write_text(SIGNALLED)

    def run(number, at, *options):
        return run_tool(script, number, at, *options, OMP_NUM_THREADS=str(torch.get_num_threads()))

    return run


@pytest.fixture
def in_checkout(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    # Detectron2's log handlers of earlier runs in this process hold streams that pytest has closed
    monkeypatch.setattr(logging, "raiseExceptions", False)


def named(out, *options):
    """With a name of its own for the data, which one process registers once."""
    return [*options, "DATASETS.CUSTOM.NAME", f"{out.parent.name}_{out.name}"]


def state(out, name="model_final"):
    found = torch.load(out / f"{name}.pth", weights_only=True)
    for key in ("seconds", "weights", "config"):  # the config has OUTPUT_DIR
        del found["trainer"][key]
    found["trainer"]["images"] = list(found["trainer"]["images"].values())  # without the names that named() gives
    return found


def different(a, b, place=""):
    """Where two states differ in a bit."""
    if isinstance(a, dict):
        keys = [key for key in (a.keys() | b.keys()) if not (key in a and key in b)]
        return keys + [found for key in a.keys() & b.keys() for found in different(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, list | tuple) and len(a) == len(b):
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in different(*pair, f"{place}.{i}")]
    alike = a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if alike else [place]


@pytest.fixture(scope="module")
def killed(signalled, run_tool, data, tmp_path_factory):
    """A run without a SEED, killed in its third iteration, with --resume and other workers brought to its end."""
    out = tmp_path_factory.mktemp("killed")
    options = [*arguments(data, out, "demo_coco_loco_finetune"), *STEPS]
    assert signalled("SIGKILL", 2, *options).returncode == -signal.SIGKILL
    assert (out / "last_checkpoint").read_text() == "model_0000001.pth" and not (out / "results.json").exists()
    done = run_tool("train_net.py", "--resume", *options, "DATALOADER.NUM_WORKERS", 2,
                    OMP_NUM_THREADS=str(torch.get_num_threads()))  # fmt: skip
    assert done.returncode == 0 and "Starting training from iteration 2" in done.stdout, done.stderr
    return out


@pytest.fixture(scope="module")
def whole(call_tool, killed, data, tmp_path_factory, request):
    """The same run in one go, in a process that has drawn other random numbers before."""
    out = tmp_path_factory.mktemp("whole")
    options = [*arguments(data, out, "demo_coco_loco_finetune"), *STEPS, "SEED", state(killed)["trainer"]["seed"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        patch.setattr(estimate, "ENOUGH", 0.0)
        assert call_tool("train_net", *named(out, *options)) == 0
    return out


def test_how_long_it_takes_is_in_the_log(whole):
    """Of 4 iterations with a batch of precise BN and 3 test images after every two."""
    lines = re.findall(r"about .* for 4 iterations at .* each, with .*", (whole / "log.txt").read_text())
    assert len(lines) == 1 and re.search(r"precise BN \(about .*\) and evaluation \(about .*\) on cpu$", lines[0])


def test_a_killed_run_ends_with_the_same_bits(killed, whole):
    assert different(state(killed), state(whole)) == []
    assert different(state(killed, "model_0000002"), state(whole, "model_0000002")) == []
    first, last = (state(whole, name)["model"] for name in ("model_0000001", "model_final"))
    changed = {k for k in last if not torch.equal(first[k], last[k])}
    assert {"backbone.bottom_up.res5.1.conv2.weight", "backbone.fpn_output2.norm.running_var"} < changed
    a, b = results(killed), results(whole)
    assert a["results"] == b["results"] and a["iteration"] == b["iteration"] == 4
    lines = [[json.loads(line) for line in (out / "metrics.json").read_text().splitlines()] for out in (killed, whole)]
    for key in ("iteration", "lr", "segm/AP"):  # losses are medians of all iterations since the start of the process
        assert [x[key] for x in lines[0] if key in x][-1] == [x[key] for x in lines[1] if key in x][-1]


def test_sigterm_writes_a_checkpoint_that_goes_on_with_the_same_bits(
    call_tool, signalled, in_checkout, data, tmp_path, whole, capsys
):
    options = [*arguments(data, tmp_path, "demo_coco_loco_finetune"), *STEPS, "SOLVER.CHECKPOINT_PERIOD", 100]
    seed = state(whole)["trainer"]["seed"]
    done = signalled("SIGTERM", 2, *options, "SEED", seed, "DATALOADER.NUM_WORKERS", 2)
    assert done.returncode == 0 and "rror" not in done.stderr, done.stderr
    assert done.stdout.count("SIGTERM: checkpoint written after iteration 2; go on with --resume") == 1
    assert [p.name for p in tmp_path.glob("*.pth")] == ["model_0000002.pth"]
    assert not (tmp_path / "results.json").exists()

    other = named(tmp_path / "other", "--resume", *options, "SEED", seed + 1)
    assert call_tool("train_net", *other) == 2
    error = capsys.readouterr().err
    assert error == f"error: SEED is {seed + 1}, but the run began with {seed}: resume with that\n"

    other = named(tmp_path / "batch", "--resume", *options, "SOLVER.IMS_PER_BATCH", 4)
    assert call_tool("train_net", *other) == 2
    assert "error: SOLVER.IMS_PER_BATCH is 4, but the run began with 2: resume" in capsys.readouterr().err

    assert call_tool("train_net", *named(tmp_path, "--resume", *options)) == 0
    assert different(state(tmp_path), state(whole)) == []
    assert results(tmp_path)["results"] == results(whole)["results"]


def stopped(*_):
    """In the place of long work, in which SIGTERM comes."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def test_sigterm_in_precise_bn_and_evaluation_loses_nothing(
    call_tool, in_checkout, data, tmp_path, whole, capsys, monkeypatch
):
    options = [*arguments(data, tmp_path, "demo_coco_loco_finetune"), *STEPS, "SOLVER.CHECKPOINT_PERIOD", 100]
    options += ["SEED", state(whole)["trainer"]["seed"]]
    for work, until, number, checkpoint in (
        ((Trainer, "test"), "in the run", 1, "model_0000001"),
        ((SamePreciseBN, "_update"), "in the last iteration", 3, "model_0000003"),
        ((Trainer, "test"), "after it", 3, "model_final"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*work, stopped)
            resume = ["--resume"] if (tmp_path / "last_checkpoint").exists() else []
            assert call_tool("train_net", *resume, *named(tmp_path / until, *options)) == 0
        line = f"SIGTERM: checkpoint written after iteration {number}; go on with --resume"
        assert capsys.readouterr().out.count(line) == 1, until
        assert (tmp_path / "last_checkpoint").read_text() == f"{checkpoint}.pth"
        assert not (tmp_path / "results.json").exists()
    assert call_tool("train_net", "--resume", *named(tmp_path / "end", *options)) == 0
    assert different(state(tmp_path), state(whole)) == [] and results(tmp_path)["results"] == results(whole)["results"]


def test_sigterm_in_eval_only(call_tool, in_checkout, trained, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "test", stopped)
    options = [*arguments(data, tmp_path), "MODEL.WEIGHTS", trained / "model_final.pth"]
    assert call_tool("train_net", "--eval-only", *named(tmp_path, *options)) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM: there is no result; the same command starts anew\n"
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("content", [b"hello", None], ids=["damaged", "weights only"])
def test_checkpoints_that_cannot_be_resumed(call_tool, in_checkout, data, tmp_path, content, capsys):
    (tmp_path / "model_0.pth").write_bytes(content or (data / "r18.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0.pth")
    assert call_tool("train_net", *named(tmp_path, "--resume", *arguments(data, tmp_path))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none of model_0.pth (" in error and ") can be read" in error


def test_sync_bn_on_the_cpu_is_bn(call_tool, in_checkout, data, tmp_path, whole):
    norms = [f"MODEL.{place}.NORM" for place in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")]
    assert (whole / "config.yaml").read_text().count("NORM: SyncBN") == len(norms)
    options = [*arguments(data, tmp_path, "demo_coco_loco_finetune"), *STEPS, "SEED", state(whole)["trainer"]["seed"]]
    assert call_tool("train_net", *named(tmp_path, *options, *(x for key in norms for x in (key, "BN")))) == 0
    assert different(state(tmp_path)["model"], state(whole)["model"]) == []


def test_one_process_under_torchrun(run_tool, data, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = run_tool("train_net.py", *arguments(data, tmp_path), "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "()",
                    RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert results(tmp_path)["iteration"] == 1


def test_losses_that_are_not_finite_name_the_remedy(call_tool, in_checkout, data, tmp_path, capsys):
    """The classic failure: fine-tuning with frozen norms."""
    options = [*arguments(data, tmp_path, "demo_coco_loco_finetune"), "SOLVER.BASE_LR", 1e9, "SOLVER.WARMUP_ITERS", 0,
               "SOLVER.MAX_ITER", 50, "MODEL.RESNETS.NORM", "FrozenBN"]  # fmt: skip
    assert call_tool("train_net", *named(tmp_path, *options)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "set MODEL.RESNETS.NORM SyncBN (or BN), or lower SOLVER.BASE_LR" in error
    last = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=True)
    assert last["iteration"] == len(list(tmp_path.glob("*.pth"))) - 1 and last["model"]
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "model_final.pth").exists()


def test_weights_that_are_not_finite(call_tool, in_checkout, data, tmp_path, capsys):
    content = pickle.loads((data / "r18.pkl").read_bytes())
    content["model"]["res5.0.conv1.weight"][0] = float("nan")
    del content["checksum"]
    (tmp_path / "nan.pkl").write_bytes(pickle.dumps(content))
    options = [*arguments(data, tmp_path), "MODEL.WEIGHTS", tmp_path / "nan.pkl"]
    assert call_tool("train_net", *named(tmp_path, *options)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS" in error and "check_dataset.py" in error
    assert "NORM" not in error and not list(tmp_path.glob("*.pth"))


def test_fast_frozen_backbone_has_the_same_ap(call_tool, in_checkout, trained, data, tmp_path):
    found, detections = [], []
    for enabled in (True, False):
        out = tmp_path / str(enabled)
        options = [*arguments(data, out), "MODEL.WEIGHTS", trained / "model_final.pth"]
        assert call_tool("train_net", "--eval-only", *named(out, *options), "MODEL.FAST_FROZEN.ENABLED", enabled) == 0
        found.append(results(out)["results"])
        detections.append(json.loads((out / "inference" / "coco_instances_results.json").read_text()))
    assert found[0] == found[1]
    fast, stock = detections
    assert len(fast) == len(stock) > 10 and fast != stock  # another way of computing the same
    for a, b in zip(fast, stock, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert [*a["bbox"], a["score"]] == pytest.approx([*b["bbox"], b["score"]], abs=1e-3)


def test_wandb_is_optional(call_tool, in_checkout, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    options = named(tmp_path, *arguments(data, tmp_path), "WANDB.PROJECT", "mine")
    assert call_tool("train_net", *options) == 2
    assert capsys.readouterr().err == "error: WANDB.PROJECT is set, but wandb is not installed: pip install wandb\n"

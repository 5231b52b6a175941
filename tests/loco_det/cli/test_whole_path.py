"""``loco-det`` from images to AP on tiny data, with an encoder of the user's own."""

import json
import os
import subprocess
import sys

import pytest
import torch
from narrow import NARROW

from loco_det.demo_scenes.writing import make_demo_data

MAIN = "import sys\nfrom loco_det.cli.main import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
OWN = """
from torch import nn
from pretrain import StageEncoder

def block(i, o, stride):
    conv = nn.Conv2d(i, o, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU(inplace=True), nn.Dropout(0.1))

def tiny():
    widths = {"low": (3, 8, 4), "mid": (8, 16, 2), "high": (16, 24, 2), "top": (24, 32, 2)}
    stages = {name: nn.Sequential(block(i, o, s)) for name, (i, o, s) in widths.items()}
    return StageEncoder(stages, [8, 16, 24, 32], [4, 8, 16, 32])

def shallow():
    return StageEncoder({"low": nn.Sequential(block(3, 8, 4))}, [8], [4])
"""
TINY = ("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)", "DATALOADER.NUM_WORKERS", 0, "TEST.PRECISE_BN.NUM_ITER", 1,
        "TEST.NUM_PICTURES", 0, *NARROW)  # fmt: skip
UNITS = "[[low, mid], [mid, high], [high, top]]"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole_path")
    make_demo_data(root / "demo", num_unlabeled=8, num_train=4, num_val=3, size=(64, 96), workers=1,
                   layouts=("unlabeled", "coco"))  # fmt: skip
    for number, path in enumerate(sorted((root / "demo" / "unlabeled").rglob("*.jpg"))):
        folder = root / ("tested" if number < 4 else "labelled") / "ab"[number % 2]  # one folder a class
        folder.mkdir(parents=True, exist_ok=True)
        os.link(path, folder / path.name)
    (root / "my_enc.py").write_text(OWN)
    (root / "main.py").write_text(MAIN)
    return root


@pytest.fixture(scope="module")
def loco_det(run_tool, data):
    """Run ``loco-det`` with my_enc.py on the path: it is beside the script."""

    def run(*arguments):
        return run_tool(data / "main.py", *arguments)

    return run


@pytest.fixture(scope="module")
def pretrained(loco_det, data):
    options = ("MODEL.ENCODER", "my_enc.tiny", "MODEL.UNITS", UNITS, "MODEL.DECODER.HIDDEN_DIM", 16,
               "DATASETS.TRAIN", data / "demo" / "unlabeled", "INPUT.CROP_SIZE", 32, "SOLVER.IMS_PER_BATCH", 4,
               "SOLVER.EPOCHS", 1.0, "SOLVER.WARMUP_EPOCHS", 0.0, "DATALOADER.NUM_WORKERS", 0, "MODEL.DEVICE", "cpu",
               "MODEL.RECOMPUTE", "[]", "OUTPUT_DIR", data / "pretrained")  # fmt: skip
    done = loco_det("pretrain", "--config-file", "imagenet/resnet50_loco_800ep", *options)
    assert done.returncode == 0, done.stderr
    files = f"{data / 'pretrained' / 'model_final.pth'} {data / 'pretrained' / 'backbone.pkl'}"
    assert done.stdout.endswith(f"next: loco-det convert {files} --arch my_enc.tiny\n")
    return data / "pretrained" / "model_final.pth"


@pytest.fixture(scope="module")
def converted(loco_det, pretrained, data):
    done = loco_det("convert", pretrained, data / "own.pkl", "--arch", "my_enc.tiny")
    assert done.returncode == 0, done.stderr
    return data / "own.pkl"


def test_own_code_runs_only_if_it_is_named(loco_det, pretrained, data):
    done = loco_det("convert", pretrained, data / "no.pkl")
    assert done.returncode == 1 and "my_enc.tiny" in done.stderr and done.stderr.count("\n") == 1
    assert not (data / "no.pkl").exists()


@pytest.mark.parametrize(("config", "frozen"), [("demo_coco_loco_frozen", True), ("demo_coco_loco_finetune", False)])
def test_a_detector_is_trained_on_it(loco_det, converted, data, config, frozen, tmp_path):
    coco, custom = data / "demo" / "coco", []
    for split, name in (("TRAIN", "train"), ("TEST", "val")):
        custom += [f"DATASETS.CUSTOM.{split}_JSON", coco / f"annotations/instances_{name}.json"]
        custom += [f"DATASETS.CUSTOM.{split}_IMAGES", coco / name]
    arguments = ["train", "--config-file", config, "--overlay", converted.with_suffix(".yaml"), *TINY, *custom]
    refused = loco_det(*arguments, "OUTPUT_DIR", tmp_path / "refused")
    assert refused.returncode == 2 and "MODEL.ENCODER is my_enc.tiny, code of your own" in refused.stderr
    done = loco_det(*arguments, "MODEL.ENCODER", "my_enc.tiny", "OUTPUT_DIR", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["backbone"], found["frozen"]) == ("my_enc.tiny", frozen)
    assert (tmp_path / "out" / "command.txt").read_text().startswith("loco-det train --config-file")
    trained, back = tmp_path / "out" / "model_final.pth", tmp_path / "back.pth"
    asleep = loco_det("convert-back", trained, back)
    assert asleep.returncode == 1 and "--arch my_enc.tiny" in asleep.stderr and not back.exists()
    assert loco_det("convert-back", trained, back, "--arch", "my_enc.tiny").returncode == 0
    weights, detector = torch.load(back), torch.load(trained)["model"]
    again = {f"backbone.bottom_up.encoder.{name}": tensor for name, tensor in weights.items()}
    kept = {name: tensor for name, tensor in detector.items() if ".encoder." in name}
    assert set(kept) <= set(again) and all(torch.equal(tensor, again[name]) for name, tensor in kept.items())
    assert all(name.endswith("num_batches_tracked") for name in set(again) - set(kept))
    assert loco_det("convert", trained, tmp_path / "own.pkl", "--arch", "my_enc.tiny").returncode == 0
    before = done.stdout.partition("iter:")[0]
    assert len(before.splitlines()) <= 40, before
    assert "\x1b" not in (tmp_path / "out" / "log.txt").read_text()


def test_it_is_read_out(loco_det, pretrained, data, tmp_path):
    options = ("MODEL.WEIGHTS", pretrained, "MODEL.SOURCE.ENCODER", "my_enc.tiny", "DATASETS.TRAIN", data / "labelled",
               "DATASETS.TEST", data / "tested", "INPUT.CROP_SIZE", 32, "DATALOADER.NUM_WORKERS", 0,
               "MODEL.DEVICE", "cpu")  # fmt: skip
    done = loco_det("knn", "--config-file", "readout/knn", *options, "KNN.K", "[3]", "OUTPUT_DIR", tmp_path / "knn")
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "knn" / "results.json").read_text())["knn"]) == ["low", "mid", "high", "top"]
    options += ("SOLVER.EPOCHS", 1.0, "SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", tmp_path / "probe")
    done = loco_det("probe", "--config-file", "cached", *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "probe" / "results.json").exists()


def test_stages_without_the_strides_of_an_fpn_are_refused(monkeypatch, data):
    from loco_det.convert.networks import stages_of_fpn
    from pretrain.encoders import parse_encoder

    monkeypatch.syspath_prepend(str(data))
    assert stages_of_fpn(parse_encoder("my_enc.tiny")) == ["low", "mid", "high", "top"]
    with pytest.raises(ValueError, match="stages of stride 4, but an FPN needs about 4, 8, 16 and 32: none is near 8"):
        stages_of_fpn(parse_encoder("my_enc.shallow"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "usage: loco-det COMMAND"),
        (("trian",), 2, "did you mean train?"),
        (("nothing",), 2, "choose one of pretrain, convert"),
        (("train", "--config-file", "coco_loco_forzen.yaml"), 2, "did you mean coco_loco_frozen.yaml?"),
        (("--help",), 0, "pretrain"),
        (("--version",), 0, "0.1.0"),
        (("-V",), 0, "0.1.0"),
        (("help",), 0, "usage: loco-det COMMAND"),
        (("help", "configs"), 0, "usage: loco-det configs"),
        (("install-detectron2", "--help"), 0, "loco-det install-detectron2 --constraint"),
        (("train", "--config-file", "none"), 2, "no shipped config: loco-det configs lists the shipped ones"),
        (("train", "--overlay", "gpu"), 2, "gpu: no such file, and no shipped overlay: name a file, or one of: cpu"),
        (("train", "--overlay", "cpuu"), 2, "no shipped overlay: did you mean overlays/cpu.yaml?"),
        (("slurm", "--", "loco-det", "trian", "OUTPUT_DIR", "x"), 2, "loco-det trian: no such tool: did you mean trai"),
        (("slurm", "--", "tools/trian.py", "OUTPUT_DIR", "x"), 2, "tools/trian.py: no such tool: did you mean train?"),
        (("configs", "no such"), 1, "no shipped config has"),
        (("configs", "coco_frozen"), 0, "LoCo 800 epochs, R50, frozen"),
        (("train", "--overlay", "none"), 2, "error: none: "),
        (("train", "--help"), 0, "usage: loco-det train"),
        (("pretrain", "--overlay", "cpu"), 2, "cpu is a config of another command, loco-det train: "),
        (("train", "--config-file", "imagenet/resnet50_simclr_100ep"), 2, "of another command, loco-det pretrain: "),
        (("probe", "--config-file", "coco_loco_frozen"), 2, "of another command, loco-det train: "),
    ],
)
def test_what_it_says(loco_det, arguments, code, said):
    done = loco_det(*arguments)
    assert done.returncode == code and said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_configs_are_listed_in_short_lines_by_whole_sentences():
    from loco_det.cli.lists.configs import LONGEST, listed

    lines = {line.split()[0]: line for line in listed()}
    assert max(map(len, lines.values())) <= LONGEST and "readout/knn.yaml" in lines
    assert "Weighted kNN of Wu et al. 2018" in lines["readout/knn.yaml"]
    assert lines["readout/cached.yaml"].endswith(" …")
    for line in lines.values():
        assert not line.endswith((" al", " Sec", ",", ":")), line


def test_a_folder_of_that_name_hides_no_shipped_config(tmp_path, monkeypatch):
    from pretrain.files.shipped_configs import CONFIGS, find_config

    (tmp_path / "cpu").mkdir()
    (tmp_path / "mine.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert find_config("cpu") == str(CONFIGS / "overlays" / "cpu.yaml")
    assert find_config("mine.yaml") == "mine.yaml" and find_config("none.yaml") == "none.yaml"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("loco-det pre", {"pretrain", "predict"}),
        ("loco-det pretrain --res", {"--resume "}),
        ("loco-det convert --list", {"--list-sources "}),
        ("loco-det train --config-file coco_loco_f", {"coco_loco_finetune.yaml", "coco_loco_frozen.yaml"}),
        ("loco-det nothing --res", set()),
    ],
)
def test_the_shell_completes(line, offered, data, tmp_path):
    script, answer = data / "loco-det", tmp_path / "answer"
    script.write_text(f"#!{sys.executable}\n{MAIN}")
    script.chmod(0o755)
    env = os.environ | {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\v", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(["bash", "-c", f"{script} 8> {answer} 9> /dev/null"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set(filter(None, answer.read_text().split("\v"))) == offered

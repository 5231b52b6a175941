"""Every tool that writes, at its smallest: what it is given, and what counts as its result."""

import hashlib
import itertools
import json
import re
import shutil
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from loco_det.convert import convert
from loco_det.demo_scenes.writing import make_demo_data
from pretrain.encoders import build_encoder
from pretrain.files.checkpoints import checkpoint_names
from pretrain.files.metrics import Metrics

CPU = ("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0)
PRETRAIN = ("--config-file", "configs/pretrain/demo_loco.yaml", *CPU, "MODEL.ENCODER", "resnet18x0.25",
            "INPUT.CROP_SIZE", 32, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.EPOCHS", 2.0, "SOLVER.WARMUP_EPOCHS", 0.0,
            "SOLVER.AMP.ENABLED", False, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.CHECKPOINTS_KEPT", 2,
            "SOLVER.LOG_PERIOD", 1, "MODEL.DECODER.HIDDEN_DIM", 8, "MODEL.DECODER.OUT_DIM", 4, "KNN.K", 3,
            "KNN.PERIOD", 1.0)  # fmt: skip
DETECT = ("--config-file", "configs/demo_coco_loco_finetune.yaml", *CPU, "INPUT.MIN_SIZE_TRAIN", "(64,)",
          "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", "(2,)",
          "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.PRECISE_BN.NUM_ITER", 1, "TEST.NUM_PICTURES", 1, "TEST.EVAL_PERIOD", 2,
          "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 3, "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50,
          "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.FPN.OUT_CHANNELS", 16,
          "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_BOX_HEAD.CONV_DIM", 8, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
          "SEED", 1)  # fmt: skip
READOUT = (*CPU, "INPUT.CROP_SIZE", 32, "MODEL.STAGES", "['res4', 'res5']")
PROBE = ("--config-file", "configs/readout/cached.yaml", *READOUT, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.EPOCHS", 3.0,
         "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.LOG_PERIOD", 1)  # fmt: skip
SCENES = ("--unlabeled", 3, "--train", 2, "--val", 2, "--size", 64, 64, "--workers", 1)


def make_inputs(root):
    """Images, annotations and weights that the tools work on."""
    make_demo_data(root / "demo", num_unlabeled=12, num_train=4, num_val=2, size=(64, 64), workers=1,
                   layouts=["unlabeled", "coco"])  # fmt: skip
    torch.manual_seed(0)
    torch.save(build_encoder("resnet18x0.25").state_dict(), root / "thin.pth")
    torch.save(build_encoder("resnet18").state_dict(), root / "r18.pth")
    convert(str(root / "r18.pth"), str(root / "r18.pkl"))
    for split, c in itertools.product(("classes", "test"), "ab"):
        (root / split / c).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng([len(split), ord(c), i]).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / c / f"{i}.png")


def custom_data(root):
    coco = root / "demo" / "coco"
    for split, name in (("TRAIN", "train"), ("TEST", "val")):
        yield from (f"DATASETS.CUSTOM.{split}_JSON", coco / f"annotations/instances_{name}.json")
        yield from (f"DATASETS.CUSTOM.{split}_IMAGES", coco / name)


def pretraining(root, out):
    data = ("DATASETS.TRAIN", root / "demo/unlabeled", "KNN.TRAIN", root / "classes")
    return [*PRETRAIN, *data, "OUTPUT_DIR", out]


def detection(root, out):
    return [*DETECT, "MODEL.WEIGHTS", root / "r18.pkl", *custom_data(root), "OUTPUT_DIR", out]


def readout(root, out, *options):
    data = ("MODEL.WEIGHTS", root / "r18.pth", "DATASETS.TRAIN", root / "classes", "DATASETS.TEST", root / "test")
    return [*options, *data, "OUTPUT_DIR", out]


def low_shot(root, out):
    data = ("DATASETS.TRAIN", "('coco_2017_train_1k_seed0',)", "DATASETS.TEST", "('coco_2017_val',)")
    return ["--config-file", "configs/demo_coco_loco_frozen.yaml", "--num-splits", 1, *data, "OUTPUT_DIR", out]


def with_finished_split(root, out):
    shutil.copytree(root / "detection", out / "seed0")


# --- results ---------------------------------------------------------------------------------------------------------


def plain(value):
    """A nested value that ``==`` compares bit by bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def files(out):
    """Names of all files below a folder, for which all numbers of TensorBoard's are one."""
    names = (str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return sorted({re.sub(r"tfevents\..*", "tfevents", name) for name in names})


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def predictions(out):
    """Without the list of files, which has what was begun twice."""
    return {name: content for name, content in contents(out).items() if not name.endswith(".written")}


def differences(a, b, path=""):
    """Where two results differ, for messages."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [text for key in {**a, **b} for text in differences(a.get(key), b.get(key), f"{path}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) != len(b):
        return [f"{path}: {[x for x in a if x not in b]} for {[x for x in b if x not in a]}"]
    return [] if a == b else [f"{path}: {str(a)[:200]} for {str(b)[:200]}"]


def results(out, *without):
    content = json.loads((out / "results.json").read_text())
    return {key: value for key, value in content.items() if key not in without}


def trained(out, *keys):
    """What a run has learned, in its last checkpoint, and of which iterations there are lines."""
    state = torch.load(out / "model_final.pth", weights_only=True)
    lines = [line["iteration"] for line in Metrics.read(out / "metrics.json").lines if "lr" in line]
    return {"files": files(out), "state": plain({key: state[key] for key in keys}), "lines": lines}


def of_pretraining(out):
    return trained(out, "model", "optimizer", "scheduler", "iteration")


def of_detection(out):
    found = trained(out, "model", "iteration", "trainer")  # the optimizer and the schedule are in the trainer
    for key in ("seconds", "weights", "config"):
        del found["state"]["trainer"][key]
    found["lines"] = found["lines"][-1:]  # one in 20 iterations, and where a process has ended by itself
    return found | {"results": results(out, "seconds", "evaluation_seconds", "peak_memory")}


def of_probe(out):
    return trained(out, "model", "optimizer", "scheduler", "iteration") | {"results": results(out, "seconds")}


def of_knn(out):
    features = torch.load(out / "features.pth", weights_only=True)
    return {"files": files(out), "features": plain(features["images"]), "results": results(out, "seconds")}


@dataclass
class Job:
    """A command line.

    Attributes:
        tool: its script.
        arguments: function of the folder of inputs and the folder to write to.
        result: function of the folder that was written to: what is to be the same, whatever has happened between.
        resumes: whether it goes on with --resume once there is a checkpoint.
        prepare: function of the same folders, called before.
        replaces: whether it can be called again upon its own result.
    """

    tool: str
    arguments: object
    result: object = contents
    resumes: bool = False
    prepare: object = None
    replaces: bool = False

    def command(self, root, out):
        """Arguments of the next call, as a user would write them."""
        resume = ["--resume"] if self.resumes and checkpoint_names(out) else []
        return [*resume, *self.arguments(root, out)]


JOBS = {
    "pretraining": Job("pretrain.py", pretraining, of_pretraining, resumes=True),
    "detection": Job("train_net.py", detection, of_detection, resumes=True),
    "linear probe": Job("linear_probe.py", lambda r, o: readout(r, o, *PROBE), of_probe, resumes=True),
    "kNN": Job("knn.py", lambda r, o: readout(r, o, *READOUT, "KNN.K", "[3]"), of_knn, replaces=True),
    "converter": Job("convert_to_d2.py", lambda r, o: [r / "thin.pth", o / "thin.pkl"], files, replaces=True),
    "converter back": Job("convert_from_d2.py", lambda r, o: [r / "detection/model_final.pth", o / "back.pth"],
                          lambda o: plain(torch.load(o / "back.pth", weights_only=True)), replaces=True),
    "demo data": Job("make_demo_data.py", lambda r, o: [o / "demo", *SCENES]),
    "predictions": Job("predict.py", lambda r, o: [r / "detection", r / "demo/coco/val", "--output", o / "found",
                                                   "--threshold", 0], predictions, replaces=True),
    "data check": Job("check_dataset.py", lambda r, o: [
        "--json", r / "demo/coco/annotations/instances_val.json", "--images", r / "demo/coco/val",
        "--pictures", o / "page.png", "--json-report", o / "report.json"], replaces=True),
    "report": Job("report.py", lambda r, o: [r / "detection", r / "pretraining", "--output", o / "page.html",
                                             "--markdown"], files, replaces=True),
    "model card": Job("model_card.py", lambda r, o: [r / "pretraining", "--output", o / "card.md"], replaces=True),
    "low-shot summary": Job("low_shot.py", low_shot, lambda o: json.loads((o / "summary.json").read_text()),
                            prepare=with_finished_split, replaces=True),
}  # fmt: skip


def begin(name, root, out):
    """Make the folder that a job writes to as it is before the first call."""
    out.mkdir(exist_ok=True)
    if JOBS[name].prepare:
        JOBS[name].prepare(root, out)

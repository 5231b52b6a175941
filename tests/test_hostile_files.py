"""Every command line with every kind of hostile file: nothing in a file runs, leads out of its folder, or is obeyed.

The table must have a row for each tool, and in each row a cell for each kind: what the tool is given, or why it reads
no such file. A new tool fails the first test until it is in the table.
"""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from checkout import ROOT
from detectron2.config import get_cfg as get_detection_cfg
from narrow import NARROW
from pickles import Calls
from PIL import Image

from loco_det.config import add_loco_config
from loco_det.convert import convert
from loco_det.demo_scenes.writing import make_demo_data
from loco_det.engine.trainer import Trainer
from pretrain.config import get_cfg
from pretrain.encoders import build_encoder
from pretrain.engine.checkpoint import AtomicCheckpointer
from pretrain.files.checkpoints import FORMAT
from pretrain.learning.build import build_learner

KINDS = ("pickle", "yaml", "encoder", "unsafe", "paths", "markup")  # unsafe: a config that switches protection off
ESCAPE = "\x1b]0;owned\x07"  # sets the title of a terminal
NAME = f"{ESCAPE}<script>alert(1)</script>\n| x | $a_{{$"  # of a class
EVALUATE = ("--lrs", 0.01, "--no-control")
LIGHT = "configs/evaluate/light_small.yaml"
NO_TOOLS = {"install_detectron2.py"}  # of a pinned archive

TINY = ("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", 0, "TEST.PRECISE_BN.ENABLED", False,
        "TEST.NUM_PICTURES", 1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5,
        "SEED", 1, *NARROW)  # fmt: skip
PRETRAIN = ("MODEL.ENCODER", "resnet18x0.25", "INPUT.CROP_SIZE", 32, "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 4,
            "SOLVER.EPOCHS", 1.0, "SOLVER.WARMUP_EPOCHS", 0.0, "DATALOADER.NUM_WORKERS", 0,
            "MODEL.DECODER.HIDDEN_DIM", 8, "MODEL.DECODER.OUT_DIM", 4)  # fmt: skip
READOUT = ("INPUT.CROP_SIZE", 32, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "MODEL.STAGES", "[res5]")


class Files:
    """Good and hostile files in a folder of their own.

    Attributes:
        folder: for what the tool writes.
        marker: file that is there if something has run.
    """

    def __init__(self, folder, good):
        self.folder, self.good, self.marker = folder, good, folder / "RAN"

    def path(self, name):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def out(self):
        return self.path("out")

    def pickled(self, name):
        """A checkpoint whose loading would run something: .pkl, or a file of torch.save."""
        path, content = self.path(name), {"model": {"a": Calls(open, str(self.marker), "w")}, "__author__": "x"}
        if path.suffix == ".pkl":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path)
        return path

    def tagged(self, name="evil.yaml"):
        """A config upon a base whose tag would run something."""
        base = self.path("base.yaml")
        base.write_text(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {self.marker}']\n")
        path = self.path(name)
        path.write_text("_BASE_: base.yaml\nSEED: 1\n" if name == "evil.yaml" else base.read_text())
        return path

    def calling(self, **keys):
        """A config that names a function which leaves a file: tempfile.mkdtemp, which TMPDIR leads here."""
        path = self.path("calling.yaml")
        path.write_text(json.dumps({"MODEL": keys}))
        return path

    def checkpoint_calling(self, name):
        """A checkpoint of ours whose encoder is such a function."""
        path = self.path(name)
        content = torch.load(self.good / "pretrained" / "model_final.pth", weights_only=True)
        content["encoder"] = "tempfile.mkdtemp"
        content["config"] = content["config"].replace("ENCODER: resnet18x0.25", "ENCODER: tempfile.mkdtemp")
        assert "tempfile" in content["config"] and content["format"] == FORMAT
        torch.save(content, path)
        return path

    def run(self, **files):
        """A copy of the finished run of a detector, with other files in it."""
        run = self.folder / "run"
        shutil.copytree(self.good / "detector", run)
        for name, content in files.items():
            path = run / name.replace("__", ".")
            path.write_text(content) if isinstance(content, str) else shutil.copy(content, path)
        return run

    def coco(self, **change):
        """Annotations with a hostile name in them."""
        content = json.loads((self.good / "demo/coco/annotations/instances_train.json").read_text())
        content["categories"][0]["name"] = change.get("name", "one")
        for image in content["images"][: change.get("outside", 0)]:
            private = self.path("private.jpg")
            shutil.copy(self.good / "demo/coco/train/000000.jpg", private)
            image["file_name"] = str(private)
        path = self.path("annotations.json")
        path.write_text(json.dumps(content))
        return path

    def data(self, path):
        images = self.good / "demo/coco/train"
        keys = ("TRAIN_JSON", path, "TRAIN_IMAGES", images, "TEST_JSON", path, "TEST_IMAGES", images)
        return [f"DATASETS.CUSTOM.{x}" if i % 2 == 0 else x for i, x in enumerate(keys)]

    def detector(self, *options, weights="random", config="configs/demo_coco_loco_frozen.yaml", json=None, flags=()):
        data = self.data(json or self.good / "demo/coco/annotations/instances_train.json")
        keys = [*TINY, "MODEL.WEIGHTS", weights, *data, "OUTPUT_DIR", self.out(), *options]
        return [*flags, "--config-file", config, *keys]

    def evaluation(self, checkpoint, *options, json=None):
        json, images = json or self.good / "demo/coco/annotations/instances_train.json", self.good / "demo/coco/train"
        return [checkpoint, "--data", json, images, json, images, *EVALUATE, "--output", self.out(), *options]

    def pretraining(self, *options, config="configs/pretrain/demo_loco.yaml", images=None, flags=()):
        keys = [*PRETRAIN, "DATASETS.TRAIN", images or self.good / "classes", "OUTPUT_DIR", self.out(), *options]
        return [*flags, "--config-file", config, *keys]

    def readout(self, *options, weights=None, config="configs/readout/knn.yaml", images=None):
        weights, images = weights or self.good / "r18.pth", images or self.good / "classes"
        data = ("DATASETS.TRAIN", images, "DATASETS.TEST", "", "OUTPUT_DIR", self.out())
        return ["--config-file", config, *READOUT, "MODEL.WEIGHTS", weights, *data, *options]

    def classes(self, folder="classes"):
        """A folder of labelled images with a hostile class and file name."""
        for name in (NAME.replace("/", "_"), "b"):
            for i in range(3):
                path = self.path(f"{folder}/{name}/{i}{ESCAPE}.png")
                Image.fromarray(np.full((32, 32, 3), 60 * i, np.uint8)).save(path)
        return self.folder / folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """What the tools work on when nothing is wrong."""
    root = tmp_path_factory.mktemp("good")
    make_demo_data(root / "demo", num_train=3, num_val=2, size=(64, 64), workers=1, layouts=["coco"])
    torch.manual_seed(0)
    torch.save(build_encoder("resnet18").state_dict(), root / "r18.pth")
    convert(str(root / "r18.pth"), str(root / "r18.pkl"))
    for c in "ab":
        (root / "classes" / c).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng([ord(c), i]).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "classes" / c / f"{i}.png")
    cfg = get_cfg()
    cfg.merge_from_list([*PRETRAIN, "OUTPUT_DIR", str(root / "pretrained")])
    AtomicCheckpointer(cfg, build_learner(cfg), 8).save("model_final", iteration=1)
    (root / "pretrained" / "metrics.json").write_text('{"iteration": 1, "lr": 0.1, "loss_res3": 1.0, "time": 1}\n')
    cfg = get_detection_cfg()
    add_loco_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *NARROW])
    run = root / "detector"
    run.mkdir()
    from pretrain.files.yaml_files import merge_config_file

    merge_config_file(cfg, ROOT / "configs/demo_coco_loco_frozen.yaml")
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 64, 3
    cfg.DATASETS.CUSTOM.TRAIN_JSON = cfg.DATASETS.CUSTOM.TEST_JSON = ""
    cfg.DATASETS.CUSTOM.TRAIN_IMAGES = cfg.DATASETS.CUSTOM.TEST_IMAGES = ""
    torch.save({"model": Trainer.build_model(cfg).state_dict(), "iteration": 1}, run / "model_final.pth")
    (run / "config.yaml").write_text(cfg.dump())
    return root


def hostile_results(files):
    names = [NAME, *"bcdefgh"]
    results = {"bbox": {"AP": 1.0, f"AP-{NAME}": 2.0}, "segm": {"AP": 1.0}}
    content = {"kind": "detection", "dataset": NAME, "results": results, "thing_classes": names}
    return json.dumps({**content, "category_ids": list(range(8))})


def hostile_report(files):
    run = files.path(f"rep/{NAME.replace('/', '_')}")
    run.mkdir(parents=True)
    (run / "results.json").write_text(hostile_results(files))
    (files.path("rep/b/metrics.json")).write_text('{"iteration": 1, "total_loss": 1, "data_time": 1, "loss_mask": 1}\n')
    return [files.folder / "rep", "--output", files.path("rep.html"), "--markdown"]


def low_shot(files, *options, config):
    return ["--config-file", config, "--num-splits", 1, *TINY, "OUTPUT_DIR", files.out(), *options]


def renamed(files):
    """A checkpoint in which a prefix would move the cursor."""
    state = torch.load(files.good / "r18.pth", weights_only=True)
    path = files.path("renamed.pth")
    torch.save({f"{ESCAPE}.{name}": value for name, value in state.items()}, path)
    return path


NO_YAML, NO_NAMES = "reads no YAML", "reads no file that names files"
NO_FILES = "reads no file of others"
TABLE = {
    "check_dataset.py": {
        "pickle": "reads no checkpoint",
        "yaml": NO_YAML,
        "encoder": "builds no encoder",
        "unsafe": NO_YAML,
        "paths": lambda f: ["--json", f.coco(outside=1), "--images", f.good / "demo/coco/train", "--pictures",
                            f.path("p.png")],
        "markup": lambda f: ["--json", f.coco(name=NAME), "--images", f.good / "demo/coco/train", "--pictures",
                             f.path("p.png")],
    },
    "checkpoints.py": dict.fromkeys(KINDS, NO_FILES),
    "convert_from_d2.py": {
        "pickle": lambda f: [f.pickled("a.pkl"), f.path("o.pth"), "--config-file", f.good / "detector/config.yaml"],
        "yaml": lambda f: [f.good / "detector/model_final.pth", f.path("o.pth"), "--config-file", f.tagged()],
        "encoder": lambda f: [f.good / "detector/model_final.pth", f.path("o.pth"), "--config-file",
                              f.calling(ENCODER="tempfile.mkdtemp")],
        "unsafe": "has no such key",
        "paths": NO_NAMES,
        "markup": lambda f: [renamed(f), f.path("o.pth")],
    },
    "convert_to_d2.py": {
        "pickle": lambda f: [f.pickled("a.pth"), f.path("o.pkl")],
        "yaml": lambda f: [f.good / "r18.pth", f.path("o.pkl"), "--base", f.tagged()],
        "encoder": lambda f: [f.checkpoint_calling("model_final.pth"), f.path("o.pkl")],
        "unsafe": "has no such key",
        "paths": NO_NAMES,
        "markup": lambda f: [renamed(f), f.path("o.pkl")],
    },
    "demo.py": dict.fromkeys(KINDS, NO_FILES),
    "evaluate.py": {  # a checkpoint that is refused is a row of the page
        "pickle": lambda f: f.evaluation(f.pickled("a.pth")),
        "yaml": lambda f: f.evaluation(f.good / "r18.pth", "--overlay", f.tagged()),
        "encoder": lambda f: f.evaluation(f.checkpoint_calling("model_final.pth")),
        "unsafe": "has no such key",
        "paths": lambda f: f.evaluation(f.good / "r18.pth", json=f.coco(outside=1)),
        "markup": lambda f: f.evaluation(f.pickled(f"x{ESCAPE}<script>alert(1)<script>.pth"), json=f.coco(name=NAME)),
    },
    "knn.py": {
        "pickle": lambda f: f.readout("FEATURES.CACHE", f.pickled("cache.pth")),
        "yaml": lambda f: f.readout(config=f.tagged()),
        "encoder": lambda f: f.readout(weights=f.checkpoint_calling("model_final.pth"),
                                       config=f.calling(SOURCE={"ENCODER": "tempfile.mkdtemp"})),
        "unsafe": lambda f: f.readout(config=f.calling(SOURCE={"UNSAFE_LOAD": True}), weights=f.pickled("a.pkl")),
        "paths": NO_NAMES,
        "markup": lambda f: f.readout("KNN.K", "[2]", images=f.classes()),
    },
    "light_head.py": {
        "pickle": lambda f: f.detector(weights=f.pickled("a.pkl"), config=LIGHT, flags=["--eval-only"]),
        "yaml": lambda f: f.detector(config=f.tagged()),
        "encoder": lambda f: f.detector(config=f.calling(ENCODER="tempfile.mkdtemp")),
        "unsafe": "has no such key",
        "paths": lambda f: f.detector(json=f.coco(outside=1), config=LIGHT),
        "markup": lambda f: f.detector("MODEL.LIGHT_HEAD.WIDTH", 32, json=f.coco(name=NAME), config=LIGHT),
    },
    "linear_probe.py": {
        "pickle": lambda f: f.readout("DATASETS.TEST", f.good / "classes/..", weights=f.pickled("a.pkl")),
        "yaml": lambda f: f.readout(config=f.tagged("evil2.yaml")),
        "encoder": lambda f: f.readout(weights=f.checkpoint_calling("model_final.pth")),
        "unsafe": lambda f: f.readout("DATASETS.TEST", f.good / "classes/..", weights=f.pickled("a.pkl"),
                                      config=f.calling(SOURCE={"UNSAFE_LOAD": True})),
        "paths": NO_NAMES,
        "markup": lambda f: f.readout("DATASETS.TEST", f.classes("test"), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.EPOCHS",
                                      1.0, "SOLVER.STEPS", "[]", images=f.classes(),
                                      config="configs/readout/cached.yaml"),
    },
    "low_shot.py": {
        "pickle": "train_net.py reads the weights",
        "yaml": lambda f: low_shot(f, config=f.tagged()),
        "encoder": lambda f: low_shot(f, config=f.calling(ENCODER="tempfile.mkdtemp")),
        "unsafe": "has no such key",
        "paths": "train_net.py reads the annotations",
        "markup": "train_net.py reads the annotations",
    },
    "make_demo_data.py": dict.fromkeys(KINDS, NO_FILES),
    "model_card.py": {
        "pickle": lambda f: [f.pickled("run/model_final.pth").parent],
        "yaml": lambda f: card(f, config=f.tagged("x.yaml").read_text()),
        "encoder": lambda f: [f.checkpoint_calling("run/model_final.pth").parent],
        "unsafe": "has no such key",
        "paths": NO_NAMES,
        "markup": lambda f: card(f, config=f"DATASETS: {{TRAIN: {json.dumps(NAME)}}}"),
    },
    "predict.py": {
        "pickle": lambda f: [f.run(model_final__pth=f.pickled("a.pkl")), f.good / "classes", "--output", f.out()],
        "yaml": lambda f: [f.run(config__yaml=f"# META_ARCHITECTURE\n{f.tagged('x.yaml').read_text()}"),
                           f.good / "classes", "--output", f.out()],
        "encoder": lambda f: [f.run(config__yaml=encoder_config(f)), f.good / "classes", "--output", f.out()],
        "unsafe": "has no such key",
        "paths": lambda f: [without(f.run(last_checkpoint=str(f.pickled("a.pkl"))), "model_final.pth"),
                            f.good / "classes", "--output", f.out()],
        "markup": lambda f: [f.run(results__json=hostile_results(f)), f.classes(), "--output", f.out(),
                             "--threshold", 0],
    },
    "pretrain.py": {
        "pickle": lambda f: f.pretraining(flags=[*resumed(f, "model_final.pth"), "--resume"]),
        "yaml": lambda f: f.pretraining(config=f.tagged()),
        "encoder": lambda f: without_key(f.pretraining(config=f.calling(ENCODER="tempfile.mkdtemp")), "MODEL.ENCODER"),
        "unsafe": "has no such key",
        "paths": lambda f: f.pretraining(flags=[*resumed(f, None, last=f.pickled("a.pkl")), "--resume"]),
        "markup": lambda f: f.pretraining(images=f.classes()),
    },
    "report.py": {
        "pickle": "reads no checkpoint",
        "yaml": lambda f: [f.run(config__yaml=f.tagged("x.yaml").read_text(), results__json='{"results": {}}')],
        "encoder": lambda f: [f.run(config__yaml=encoder_config(f), results__json='{"results": {}}')],
        "unsafe": "has no such key",
        "paths": NO_NAMES,
        "markup": hostile_report,
    },
    "runs.py": {
        "pickle": "reads no checkpoint",
        "yaml": lambda f: [f.run(config__yaml=f.tagged("x.yaml").read_text(), results__json='{"results": {}}')],
        "encoder": lambda f: [f.run(config__yaml=encoder_config(f), results__json='{"results": {}}'), "--json"],
        "unsafe": "has no such key",
        "paths": NO_NAMES,
        "markup": lambda f: [*hostile_report(f)[:1], "--csv"],
    },
    "slurm.py": dict.fromkeys(KINDS, "starts another tool, which reads them"),
    "train_net.py": {
        "pickle": lambda f: f.detector(weights=f.pickled("a.pkl"), flags=["--eval-only"]),
        "yaml": lambda f: f.detector(config=f.tagged()),
        "encoder": lambda f: f.detector(config=f.calling(ENCODER="tempfile.mkdtemp")),
        "unsafe": "has no such key",
        "paths": lambda f: f.detector(json=f.coco(outside=1)),
        "markup": lambda f: f.detector("MODEL.ROI_HEADS.NUM_CLASSES", 8, json=f.coco(name=NAME)),
    },
}  # fmt: skip


def without(folder, name):
    (folder / name).unlink()
    return folder


def without_key(arguments, key):
    at = arguments.index(key)
    return [*arguments[:at], *arguments[at + 2 :]]


def resumed(files, name, last=None):
    """Put a hostile checkpoint into the folder that is resumed; returns no flags."""
    files.out().mkdir()
    if name:
        files.pickled(f"out/{name}").rename(files.out() / name)
    (files.out() / "last_checkpoint").write_text(str(last or name))
    return []


def encoder_config(files):
    text = (files.good / "detector/config.yaml").read_text()
    changed = text.replace("ENCODER: ''", "ENCODER: tempfile.mkdtemp").replace("build_resnet_fpn", "build_encoder_fpn")
    assert "tempfile" in changed and "build_encoder_fpn" in changed
    return changed


def card(files, config):
    """A good run, and a readout of it with a hostile config."""
    run, readout = files.folder / "card", files.folder / f"r{ESCAPE}"
    shutil.copytree(files.good / "pretrained", run)
    readout.mkdir()
    from pretrain.files.atomic import sha256_of

    weights = {"sha256": sha256_of(run / "model_final.pth")}
    images = {"train": 4, "test": 4, "classes": 2}
    content = {"weights": weights, "images": images, "protocol": {}, "knn": {"res5": {"k3_t0.1": {"top1": 50.0}}}}
    (readout / "results.json").write_text(json.dumps(content))
    (readout / "config.yaml").write_text(config)
    return [run, "--knn", readout, "--name", NAME]


def test_every_tool_has_its_row():
    tools = {path.name for path in (ROOT / "tools").glob("*.py")} - NO_TOOLS
    assert TABLE.keys() == tools and all(row.keys() == set(KINDS) for row in TABLE.values())


CELLS = [(tool, kind) for tool, row in TABLE.items() for kind, cell in row.items() if callable(cell)]
# Where the file is good but for what must not be obeyed, the tool does its work; everything else is refused
WORKS = {(tool, kind) for kind in KINDS for tool in ("report.py", "runs.py")} | {("check_dataset.py", "markup"),
         ("knn.py", "markup"), ("light_head.py", "markup"), ("linear_probe.py", "markup"), ("model_card.py", "markup"),
         ("predict.py", "markup"),
         ("pretrain.py", "markup"), ("train_net.py", "markup")}  # fmt: skip
FINDINGS = {("check_dataset.py", "paths"): 1, ("convert_to_d2.py", "pickle"): 1, ("convert_to_d2.py", "yaml"): 1,
            ("convert_to_d2.py", "encoder"): 1, ("convert_from_d2.py", "pickle"): 1, ("convert_from_d2.py", "yaml"): 1,
            ("convert_from_d2.py", "encoder"): 1, ("convert_from_d2.py", "markup"): 1,
            ("convert_to_d2.py", "markup"): 1, ("evaluate.py", "pickle"): 1, ("evaluate.py", "encoder"): 1,
            ("evaluate.py", "markup"): 1}  # fmt: skip


@pytest.mark.parametrize(("tool", "kind"), CELLS)
def test_nothing_in_a_file_is_obeyed(run_tool, good, tmp_path, tool, kind):
    files = Files(tmp_path, good)
    arguments = TABLE[tool][kind](files)
    (tmp_path / "tmp").mkdir()
    done = run_tool(tool, *arguments, TMPDIR=str(tmp_path / "tmp"), OMP_NUM_THREADS="1")
    output = done.stdout + done.stderr
    assert not files.marker.exists(), output
    assert not list((tmp_path / "tmp").glob("tmp????????")), "tempfile.mkdtemp was called"
    assert "Traceback" not in output, output
    assert ESCAPE not in output and "\x1b]" not in output, repr(output)
    code = 0 if (tool, kind) in WORKS else FINDINGS.get((tool, kind), 2)
    assert done.returncode == code, output
    if code == 2:
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    for page in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.md"), *tmp_path.rglob("log.txt")]:
        text = page.read_text()
        assert "\x1b" not in text, page
        if page.name == "model_card.md":  # it begins with YAML, which is no Markdown
            text = text.split("\n---\n", 1)[1]
        assert page.name == "log.txt" or "<script>alert" not in text, page

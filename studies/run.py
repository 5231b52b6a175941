#!/usr/bin/env python3
"""The study: is LoCo as good as end-to-end learning, and better than Greedy InfoMax, at a scale that two cores allow?

Every row of rows.py is pretrained by tools/pretrain.py on the same images with the same augmentation, batch and number
of steps. tools/linear_probe.py and tools/knn.py read out every stage; tools/train_net.py trains a detector on frozen
encoders. Each row's learning rate is chosen first (rates.py), on one small grid, by the probe of training images that
it has not been fitted to. What is finished is not run again, and what was interrupted goes on from its last checkpoint.
"""

import argparse
import fcntl
import functools
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import yaml
from rates import FIRST_RATES, LONG, MIDDLE, RATES, SHORT, chosen_rate, missing_rates, wanted_rates
from rows import CROP96, LATE, MAIN, ROWS, SETTINGS, SETTINGS_ROWS, TABLE4, TABLE5, TUNED
from runner import Runner, write

from loco_det.cli.common.errors import one_line_errors
from pretrain.config import get_cfg
from pretrain.files.results import LinearResults

EXAMPLE = """example:
  python studies/run.py --imagenette imagenette96 --nuclei nuclei --output output/study      # all: two days
  python studies/run.py --imagenette imagenette96 --output output/study --phase table4       # one table
  python studies/report.py output/study                                                      # what came out
The nuclei have to be in COCO format, annotations/instances_{train,val}.json beside train/ and val/."""
EXPLODED = "start anew with a lower SOLVER.BASE_LR"  # what tools/pretrain.py says of a loss that has exploded
THIN18, THIN50, DEMO = "imagenette96_resnet18", "imagenette96_resnet50", "demo_resnet18"


class Run(NamedTuple):
    """One encoder: scale, row, learning rate, budget in epochs, seed; and the data of a detector on it, if any."""

    scale: str
    row: str
    rate: float
    epochs: float
    seed: int
    detect: str = ""

    @property
    def name(self):
        return f"{self.scale}/{self.row}/{self.epochs:g}ep_lr{self.rate:g}_seed{self.seed}"


class Study(Runner):
    """The runs under one folder."""

    def __init__(self, args):
        super().__init__(args.output, args.jobs)
        self.args, self.without_rate = args, set()  # (row, budget) that could not be run so far
        self.record = read_record(args.record) if args.record else {"data": {}, "runs": []}
        self.recorded = {run_of(run): run for run in self.record["runs"]}

    def begin(self, needed):
        """Take hold of the folder, and look for the data before anything is run.

        Args:
            needed: names of data sets.

        Raises:
            ValueError: if another process has the folder, or the folder or the record has runs on other data.
            FileNotFoundError: if data are missing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hold = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self.hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.folder}: another study is running there") from None
        path = self.folder / "study.json"
        before = json.loads(path.read_text()) if path.exists() else {"data": {}}
        now = {name: names_of(self.data(name)) for name in needed}
        for name, digest in now.items():
            if before["data"].get(name, digest) != digest:
                raise ValueError(f"{self.folder} has runs on other images of {name}: choose another --output")
            if self.record["data"].get(name, digest) != digest:
                raise ValueError(f"{self.args.record} has runs on other images of {name}: leave --record out")
        write(path, json.dumps({"data": {**before["data"], **now}}, indent=1))

    def data(self, name):
        """Folder of a data set; the demo's scenes are made if there are none.

        Raises:
            ValueError: if the command line does not name it.
            FileNotFoundError: if it is not there.
        """
        if name == "demo":
            folder = self.folder / "demo_data"
            if not folder.exists():
                scenes = "--unlabeled 1500 --train 200 --val 50 --size 128 160 --layouts unlabeled coco".split()
                subprocess.run([sys.executable, ROOT / "tools" / "make_demo_data.py", folder, *scenes], check=True)
            return folder
        if not getattr(self.args, name):
            raise ValueError(f"this phase needs --{name} FOLDER")
        folder = Path(getattr(self.args, name)).resolve()
        if not (folder / "train").is_dir():
            raise FileNotFoundError(f"{folder / 'train'}: no such folder")
        return folder

    def recipe(self, run):
        """The run's config: the row's file, the scale's, what the row needs at that scale, and the run's own keys."""
        row, cfg = ROWS[run.row], get_cfg()
        cfg.merge_from_file(str(ROOT / "configs" / "pretrain" / f"{row.recipe}.yaml"))
        cfg.merge_from_file(str(HERE / "scales" / f"{run.scale}.yaml"))
        keys = {**row.keys, "SOLVER.BASE_LR": run.rate, "SEED": run.seed}
        if cfg.MODEL.UNITS:
            keys |= {"SOLVER.EPOCHS": float(run.epochs), "SOLVER.WARMUP_EPOCHS": run.epochs / 10}
        cfg.merge_from_list([part for pair in keys.items() for part in pair])
        demo = run.scale == DEMO
        cfg.DATASETS.TRAIN = str(self.data("demo") / "unlabeled" if demo else self.data("imagenette") / "train")
        cfg.OUTPUT_DIR = str(self.folder / run.name / "pretrain")
        return cfg

    def do(self, run):
        """Pretrain, read out and detect, as far as that is not done."""
        before = self.recorded.get(run._replace(detect=""))
        if before and (not run.detect or run.detect in before.get("detection", {})):
            return
        folder, cfg = self.folder / run.name, self.recipe(run)
        folder.mkdir(parents=True, exist_ok=True)
        same_run(folder / "pretrain" / "config.yaml", cfg)
        weights = folder / "pretrain" / "model_final.pth"
        if not weights.exists() and not (folder / "diverged").exists():
            write(folder / "recipe.yaml", cfg.dump())
            resume = ["--resume"] if (folder / "pretrain" / "last_checkpoint").exists() else []
            try:
                processes = ["--num-gpus", cfg.MODEL.STAGE_PARALLEL.DEVICES]
                self.call(run, "pretrain", "--config-file", folder / "recipe.yaml", *processes, *resume)
            except RuntimeError:
                if EXPLODED not in (folder / "log.txt").read_text():
                    raise
                write(folder / "diverged", "")  # an outcome: the learning rate is too high
        if (folder / "diverged").exists():
            return
        if run.scale != DEMO:  # whose scenes have no class
            self.read_out(run, weights, cfg.INPUT.CROP_SIZE)
        if run.detect:
            self.detect(run, weights)

    def read_out(self, run, weights, size):
        """Linear probe and kNN of every stage; the second one takes the first one's features."""
        folder, data = self.folder / run.name, self.data("imagenette")
        features = folder / "features.pth"
        common = ["MODEL.WEIGHTS", weights, "DATASETS.TRAIN", data / "train", "DATASETS.TEST", data / "val"]
        common += ["INPUT.CROP_SIZE", size, "DATALOADER.NUM_WORKERS", 0, "FEATURES.CACHE", features]
        fit = ["DATASETS.HELD_OUT", 0.2, "SEED", run.seed]
        for tool, config, keys in (("linear_probe", "cached", fit), ("knn", "knn", [])):
            if not (folder / tool / "results.json").exists():
                config = ROOT / "configs" / "readout" / f"{config}.yaml"
                self.call(run, tool, "--config-file", config, *common, *keys, "OUTPUT_DIR", folder / tool)
        features.unlink(missing_ok=True)

    def detect(self, run, weights):
        """Mask R-CNN on the frozen encoder."""
        out = self.folder / run.name / run.detect
        if (out / "results.json").exists():
            return
        data = self.data(run.detect)
        data = data / "coco" if run.detect == "demo" else data
        backbone = weights.with_name("backbone.pkl")
        if not backbone.exists():
            self.call(run, "convert_to_d2", weights, backbone)
        keys = ["MODEL.WEIGHTS", backbone, "OUTPUT_DIR", out, "SEED", run.seed]
        for name, part in (("TRAIN", "train"), ("TEST", "val")):
            keys += [f"DATASETS.CUSTOM.{name}_JSON", data / "annotations" / f"instances_{part}.json"]
            keys += [f"DATASETS.CUSTOM.{name}_IMAGES", data / part]
        config = HERE / ("detection.yaml" if run.detect == "demo" else f"{run.detect}.yaml")
        resume = ["--resume"] if (out / "last_checkpoint").exists() else []
        self.call(run, "train_net", "--config-file", config, *resume, *keys)

    def grid(self):
        """The runs that the choice of learning rates still needs; none once it is made."""
        wanted = [(row, *one) for row in TUNED for one in wanted_rates(self.tried(row, SHORT), self.tried(row, MIDDLE))]
        return [Run(THIN18, row, rate, epochs, 0) for row, rate, epochs in wanted]

    def tried(self, row, epochs, scale=THIN18):
        """Learning rate -> accuracy of res5 on held-out training images, of the row's finished runs with seed 0."""
        found = {}
        for run in (Run(scale, row, rate, epochs, 0) for rate in RATES):
            folder = self.folder / run.name
            if run.name in self.busy:
                continue
            if (folder / "diverged").exists():
                found[run.rate] = 0.0
            elif (path := folder / "linear_probe" / "results.json").exists():
                found[run.rate] = LinearResults.read(path).linear["res5"].held_out_top1 or 0.0
            elif before := self.recorded.get(run):
                found[run.rate] = before["held_out"]["res5"]
        return found

    def rate(self, row, epochs):
        """The learning rate of a row for a budget; None if it is not chosen yet."""
        row = ROWS[row].rate_of or row
        if row == "random":
            return FIRST_RATES[0]  # nothing learns by it
        return chosen_rate(self.tried(row, SHORT), self.tried(row, MIDDLE), epochs)

    def runs(self, rows, epochs, seeds, scale=THIN18, detect=""):
        """Rows whose learning rate is known; the random encoder is the same for every budget."""
        rates = {row: self.rate(row, epochs) for row in rows}
        budgets = {row: epochs if ROWS[row].recipe != "imagenet/resnet50_random" else 0 for row in rows}
        known = [row for row in rows if rates[row] is not None]
        self.without_rate |= {(row, epochs) for row in rows if row not in known}
        return [Run(scale, row, rates[row], budgets[row], seed, detect) for seed in seeds for row in known]

    def setting(self, scale):
        """A scale that differs from the study's in one setting, for the rows to see it by."""
        return [run for epochs in (SHORT, MIDDLE) for run in self.runs(SETTINGS_ROWS, epochs, range(3), scale=scale)]

    def rates_again(self, scale, epochs):
        """The runs by which one sees whether the rows' learning rates are the best ones at another scale, too."""
        own = {run.row: run.rate for run in self.runs(SETTINGS_ROWS, epochs, [0])}
        wanted = [(row, rate) for row in own for rate in missing_rates(self.tried(row, epochs, scale), [own[row]])]
        return [Run(scale, row, rate, epochs, 0) for row, rate in wanted]


def same_run(path, cfg):
    """Refuse to go on in another run's folder; where data and results lie is free.

    Raises:
        ValueError: if the config at ``path`` is another one.
    """
    if not path.exists():
        return
    try:
        before, now = yaml.safe_load(path.read_text()), yaml.safe_load(cfg.dump())
        for config in (before, now):
            del config["OUTPUT_DIR"], config["DATASETS"]["TRAIN"], config["DATALOADER"], config["MODEL"]["DEVICE"]
    except (yaml.YAMLError, TypeError, KeyError):
        raise ValueError(f"{path} is damaged: remove {path.parent}") from None
    if before != now:
        raise ValueError(f"{path.parent} holds a run of another recipe: remove it, or choose another --output")


def read_record(path):
    """A study.json of before, as report.py writes it.

    Raises:
        ValueError: if it is something else.
    """
    try:
        data = json.loads(Path(path).read_text())
    except ValueError:  # no JSON, or no text
        data = None
    if not isinstance(data, dict) or not data.get("runs") or "data" not in data:
        raise ValueError(f"{path} is no study.json with runs")
    return data


def run_of(record):
    """The run that a record is of."""
    return Run(*(record[key] for key in ("scale", "row", "rate", "epochs", "seed")))


def names_of(folder):
    """SHA-256 of the names of all files in a folder, which tells data sets from each other."""
    names = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


LOCAL = tuple(row for row in MAIN if "barlow" not in row)  # the rows of the paper's own comparison
PHASES = {
    "grid": Study.grid,
    "short": lambda study: study.runs(MAIN, SHORT, range(3)),
    "middle": lambda study: study.runs(MAIN, MIDDLE, range(3)),
    "nuclei": lambda study: study.runs(LOCAL, MIDDLE, [1], detect="nuclei"),  # a seed by which nothing was chosen
    "long": lambda study: study.runs(LOCAL, LONG, range(3)),
    "table4": lambda study: study.runs(TABLE4, SHORT, range(1)) + study.runs(TABLE4, MIDDLE, range(1)),
    "table5": lambda study: study.runs(TABLE5, SHORT, range(1)) + study.runs(TABLE5, MIDDLE, range(1)),
    "demo": lambda study: study.runs(LOCAL, MIDDLE, range(1), scale=DEMO, detect="demo"),
    "resnet50": lambda study: study.runs(LOCAL, MIDDLE, range(1), scale=THIN50),
    # temperature, batch, ...
    **{scale.rpartition("_")[2]: functools.partial(Study.setting, scale=scale) for scale in list(SETTINGS)[1:]},
    "late": lambda study: study.runs(LATE, SHORT, range(3)) + study.runs((LATE[0], LATE[-1]), MIDDLE, range(3)),
    "rates96": lambda study: study.rates_again(CROP96, MIDDLE),
}

DATA = {"nuclei": ["imagenette", "nuclei"], "demo": ["demo"]}  # what phases need; the others imagenette


def main(args):
    study = Study(args)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, study.stop)
    phases = args.phase or list(PHASES)
    study.begin(dict.fromkeys(name for phase in phases for name in DATA.get(phase, ["imagenette"])))
    rows, budgets = args.rows or list(ROWS), args.epochs or (SHORT, MIDDLE, LONG)
    tuned = {ROWS[row].rate_of or row for row in rows}

    def wanted():
        study.without_rate.clear()
        runs = []
        for phase in phases:
            for run in PHASES[phase](study):
                if phase == "grid":  # what the choice of the rows' rates needs, for these budgets and the shorter ones
                    asked_for = run.row in tuned and run.epochs <= max(budgets)
                else:
                    asked_for = run.row in rows and run.epochs in (0, *budgets)
                runs += [run] * asked_for
        return runs

    study.work(wanted)
    if study.failed:
        raise RuntimeError(f"{len(study.failed)} runs failed: {', '.join(study.failed)}")
    wanted()
    if lacking := sorted({row for row, epochs in study.without_rate if row in rows and epochs in budgets}):
        raise ValueError(f"the learning rates of {', '.join(lacking)} are not chosen yet: run --phase grid first")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imagenette", help="folder with train/ and val/, in each a sub-folder for each class")
    parser.add_argument("--nuclei", help="folder of the data for detection")
    parser.add_argument("--output", default="output/study", help="folder of the runs (default: %(default)s)")
    parser.add_argument("--record", help="a study.json of before: the runs in it are not run again")
    parser.add_argument("--phase", nargs="+", choices=list(PHASES), help="which parts (default: all, in this order)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--epochs", nargs="+", type=int, choices=(SHORT, MIDDLE, LONG), help="only these budgets")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each (default: %(default)s)")
    arguments = parser.parse_args()
    with one_line_errors():
        main(arguments)

#!/usr/bin/env python3
"""Does the light head rank encoders as the frozen Mask R-CNN does, and how much faster is it?

    python benchmarks/light_head.py --backbones output/*/backbone.pkl --runs output/calibration \\
        --data demo data/train.json data/train data/val.json data/val
    python benchmarks/light_head.py --backbones NAME=a.pkl NAME=b.pkl --runs output/calibration \\
        --data nuclei nuclei/train.json nuclei/train nuclei/val.json nuclei/val INPUT.MIN_SIZE_TRAIN "(256,)" \\
        INPUT.MIN_SIZE_TEST 256 --full-runs output/older

On every data set, every converted backbone gets a frozen Mask R-CNN (tools/train_net.py) and the light head
(tools/light_head.py), whose features are computed by its first seed and read by the others. A backbone.yaml beside the
weights is an overlay of both.

All figures are from the runs' results.json. Seconds are those of training, with the start of the trainer and, of the
light head, the features, plus those of the last evaluation; the start of Python is not in them. AP is the mean over
seeds. "Kendall" is tau b, "Spearman" rho, over the backbones.

Runs that are finished in --runs are not repeated. Frozen Mask R-CNNs of the same weights (by their SHA-256) on data of
the same name that lie anywhere below --full-runs stand in for those of --runs: name folders whose config is the same.
"""

import itertools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

SMOKE = {"backbones": ["random", "random"], "full_seeds": 1, "light_seeds": 1, "data": []}
TINY = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.MAX_ITER", "2",
        "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "TEST.PRECISE_BN.NUM_ITER", "1",
        "TEST.DETECTIONS_PER_IMAGE", "5"]  # fmt: skip
KINDS = {"full": "train_net", "light": "light_head"}


def add_arguments(parser):
    parser.add_argument("--backbones", nargs="+", default=[], metavar="[NAME=]FILE.pkl")
    parser.add_argument("--data", nargs="+", action="append", default=[], metavar=("NAME", "FILE"),
                        help="NAME TRAIN.json IMAGES TEST.json IMAGES [KEY VALUE ...]; may be repeated")  # fmt: skip
    parser.add_argument("--shared", action="store_true", help="the machine does other work, too: leave out the times")
    parser.add_argument("--runs", help="folder of the runs (default: a temporary one)")
    parser.add_argument("--full-runs", nargs="+", default=[], metavar="FOLDER", help="of finished runs")
    configs = "of all data sets, or one for each"
    parser.add_argument("--full-config", nargs="+", default=["configs/demo_coco_loco_frozen.yaml"], help=configs)
    parser.add_argument("--light-config", nargs="+", default=["configs/evaluate/light_small.yaml"], help=configs)
    parser.add_argument("--full-seeds", type=int, default=1)
    parser.add_argument("--light-seeds", type=int, default=3)


def named(words):
    """Name -> path of the weights; without a name, the last two folders are one."""
    found = {}
    for k, word in enumerate(words):
        name, equals, path = word.rpartition("=")
        found[name if equals else f"random{k}" if word == "random" else "/".join(Path(path).parts[-3:-1])] = path
    if len(found) < 2:
        raise ValueError("--backbones: a ranking needs two or more, of different names")
    return found


def pairs(data):
    """KEY VALUE pairs of a data set."""
    if len(data) < 5 or len(data) % 2 == 0:
        raise ValueError(f"--data {' '.join(data)}: write NAME TRAIN.json IMAGES TEST.json IMAGES [KEY VALUE ...]")
    keys = ("NAME", "TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
    own = [word for key, value in zip(keys, data, strict=False) for word in (f"DATASETS.CUSTOM.{key}", value)]
    return own + data[5:]


def results(folder):
    """The results of a finished run; None if it is not finished."""
    from loco_det.runs.folder import is_finished
    from pretrain.files.results import DetectionResults

    return DetectionResults.read(folder / "results.json") if is_finished(folder) else None


def trained(kind, config, weights, options, folder, seed, features):
    """The results of a run, which is trained if it is not there."""
    found = results(folder)
    if found is None:
        common.progress(f"{folder}")
        overlay = Path(weights).with_suffix(".yaml")
        command = [sys.executable, common.ROOT / "tools" / f"{KINDS[kind]}.py", "--config-file", config]
        command += ["--overlay", overlay] if overlay.is_file() else []
        command += ["--resume"] if (folder / "last_checkpoint").exists() else []
        command += [*options, "MODEL.WEIGHTS", weights, "SEED", seed, "OUTPUT_DIR", folder, "TEST.NUM_PICTURES", 0]
        command += ["MODEL.LIGHT_HEAD.FEATURES", features] if kind == "light" else []
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=common.ROOT)
        found = results(folder)
        if done.returncode or found is None:
            raise ValueError(f"{folder}: {done.stderr.strip().splitlines()[-1:]}")
    return found


def figures(found):
    """What counts of a run."""
    return {"ap": found.results["bbox"]["AP"], "ap50": found.results["bbox"]["AP50"], "weights": found.weights_sha256,
            "seconds": found.seconds + found.evaluation_seconds, "iterations": found.iteration}  # fmt: skip


def older(folders, data):
    """SHA-256 of weights -> figures of the frozen Mask R-CNNs that are finished on data of that name."""
    found = {}
    for path in sorted(itertools.chain(*(folder.rglob("results.json") for folder in folders))):
        try:
            run = results(path.parent)
        except ValueError:  # of a later version
            continue
        if run and run.frozen and run.detector in (None, "Mask R-CNN") and run.dataset == f"{data}_test":
            found.setdefault(run.weights_sha256, []).append(figures(run))
    return found


def correlation(rows):
    """Kendall's tau b and Spearman's rho of the mean APs."""
    from scipy import stats

    full, light = ([statistics.mean(run["ap"] for run in row[kind]) for row in rows.values()] for kind in KINDS)
    if len(set(full)) < 2 or len(set(light)) < 2:
        return {"kendall": None, "spearman": None}
    found = {"kendall": stats.kendalltau(full, light), "spearman": stats.spearmanr(full, light)}
    return {name: float(value.statistic) for name, value in found.items()}


def calibrate(args, backbones, data, folder, configs):
    """Runs of all backbones on one data set, and what comes out of them."""
    from pretrain.files.atomic import sha256_of

    options, known, rows = pairs(data), older([Path(folder) for folder in args.full_runs], data[0]), {}
    for name, weights in backbones.items():
        place = folder / data[0] / name.replace("/", "_")
        weights = weights if weights == "random" else Path(weights).resolve()
        row = {"full": [] if weights == "random" else known.get(sha256_of(weights), []), "light": []}
        plans = [("full", configs[0], 0 if row["full"] else args.full_seeds),
                 ("light", configs[1], args.light_seeds)]  # fmt: skip
        for kind, config, seeds in plans:
            for seed in range(seeds):
                run = place / kind / f"seed{seed}"
                row[kind].append(figures(trained(kind, config, weights, options, run, seed, place / "features")))
        rows[name] = row
    full = statistics.mean(run["seconds"] for row in rows.values() for run in row["full"])
    first = statistics.mean(row["light"][0]["seconds"] for row in rows.values())
    later = [run["seconds"] for row in rows.values() for run in row["light"][1:]]
    seeds = args.light_seeds
    speed = {"first": full / first, "seeds": None}
    if later:
        later = statistics.mean(later)
        speed |= {"later": full / later, "seeds": seeds * full / (first + (seeds - 1) * later)}
    return {"rows": rows, "speed_up": speed, **correlation(rows)}


def measure(args):
    backbones = named(args.backbones)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.runs or temporary).resolve()
        sets = args.data or [scenes(folder)]
        configs = [of_each(words, len(sets)) for words in (args.full_config, args.light_config)]
        found = {
            data[0]: calibrate(args, backbones, data, folder, pair) for data, *pair in zip(sets, *configs, strict=True)
        }
        return found


def of_each(configs, count):
    """The config of each data set."""
    if len(configs) not in (1, count):
        raise ValueError(f"{len(configs)} configs, but {count} data sets: name one, or one for each")
    return configs * (count if len(configs) == 1 else 1)


def scenes(folder):
    """The data of a smoke run."""
    from loco_det.demo_scenes.writing import make_demo_data

    make_demo_data(folder / "scenes", num_train=4, num_val=2, size=(64, 96), workers=1, layouts=("coco",))
    coco = folder / "scenes" / "coco"
    splits = [(coco / f"annotations/instances_{name}.json", coco / name) for name in ("train", "val")]
    return ["scenes", *(str(path) for split in splits for path in split), *TINY]


def markdown(record):
    texts, shared = [], record["settings"]["shared"]
    for data, found in record["results"].items():
        order = sorted(found["rows"].items(), key=lambda row: -statistics.mean(run["ap"] for run in row[1]["full"]))
        heads, lines = ["encoder", ">Mask R-CNN, box AP", ">light head, box AP"], []
        heads += [] if shared else [">Mask R-CNN, s", ">first seed, s", ">later, s"]
        for name, row in order:
            aps, seconds = ([[run[key] for run in row[kind]] for kind in KINDS] for key in ("ap", "seconds"))
            later = f"{statistics.mean(seconds[1][1:]):.0f}" if seconds[1][1:] else "-"
            times = [] if shared else [f"{statistics.mean(seconds[0]):.0f}", f"{seconds[1][0]:.0f}", later]
            lines.append([name, common.spread(aps[0]), common.spread(aps[1]), *times])
        ranks = ", ".join(f"{name.capitalize()} {found[name]:.2f}" for name in ("kendall", "spearman")
                          if found[name] is not None)  # fmt: skip
        speed = "" if shared else f" {speed_text(found['speed_up'])}"
        texts.append(f"{data}: {ranks or 'no ranking, all APs are equal'}.{speed}\n\n{common.table(heads, lines)}")
    return "\n\n".join(texts)


def speed_text(speed):
    """How much faster the light head is, in a sentence."""
    over = f", {speed['seeds']:.1f}x over all seeds" if speed["seeds"] else ""
    later = f", {speed['later']:.1f}x with stored features" if "later" in speed else ""
    return f"The light head is {speed['first']:.1f}x as fast with its features to compute{later}{over}."


if __name__ == "__main__":
    common.main(sys.modules[__name__])

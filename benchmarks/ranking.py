#!/usr/bin/env python3
"""What ``loco-det evaluate`` says of some checkpoints: the tables, sentences and times of finished evaluations.

    python benchmarks/ranking.py --evaluations output/ranking_minutes output/ranking_short

Each folder is the ``--output`` of ``tools/evaluate.py``. The figures are those of its results.json; seconds are those
of all its detectors, with the choice of the learning rate.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

SMOKE = {"evaluations": []}
TINY = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "TEST.PRECISE_BN.NUM_ITER", "1",
        "TEST.NUM_PICTURES", "1"]  # fmt: skip


def add_arguments(parser):
    parser.add_argument("--evaluations", nargs="+", default=[], metavar="FOLDER")


def measure(args):
    if args.evaluations:
        return {Path(folder).name: figures(Path(folder)) for folder in args.evaluations}
    with tempfile.TemporaryDirectory() as temporary:
        return {"tiny": figures(tiny(Path(temporary)))}


def figures(folder):
    """What counts of a folder's results.json."""
    found = json.loads((folder / "results.json").read_text())
    settings = found["settings"]
    rates = {row["name"]: row["rates"] for row in found["rows"]}
    rankings = [
        {
            "protocol": ranking["protocol"],
            "metric": ranking["metric"],
            "entries": [
                {key: entry[key] for key in ("name", "control", "mean", "half")}
                | {"rate": rates[entry["name"]].get(ranking["protocol"])}
                for entry in ranking["entries"]
            ],
            "verdicts": [one["verdict"] for one in ranking["comparisons"]],
        }
        for ranking in found["rankings"]
    ]
    return {
        "budget": settings["budget"],
        "data": settings["data"]["name"],
        "seeds": settings["seeds"],
        "grid": settings["rates"],
        "options": settings["options"],
        "headline": found["headline"],
        "rankings": rankings,
        "seconds": seconds(folder),
    }


def seconds(folder):
    """Of all detectors, with their evaluation."""
    total = 0.0
    for path in (*folder.glob("*/*/seed*/results.json"), *folder.glob("*/*/choice/*/results.json")):
        run = json.loads(path.read_text())
        total += (run.get("seconds") or 0) + (run.get("evaluation_seconds") or 0)
    return total


def tiny(folder):
    """An evaluation of seconds."""
    from torch import save

    from loco_det.demo_scenes.writing import make_demo_data
    from pretrain.encoders import build_encoder

    make_demo_data(folder / "scenes", num_train=4, num_val=2, size=(64, 96), workers=1, layouts=("coco",))
    save(build_encoder("resnet18x0.25").state_dict(), folder / "tiny.pth")
    coco = folder / "scenes" / "coco"
    data = [coco / part for name in ("train", "val") for part in (f"annotations/instances_{name}.json", name)]
    words = [
        folder / "tiny.pth",
        "--data",
        *data,
        "--budget",
        "minutes",
        "--lrs",
        "0.01",
        "--seeds",
        "1",
        "--no-control",
    ]
    command = [
        sys.executable,
        common.ROOT / "tools" / "evaluate.py",
        *words,
        "--output",
        folder / "out",
        "--opts",
        *TINY,
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"tools/evaluate.py: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "out"


def markdown(record):
    texts = []
    for found in record["results"].values():
        for ranking in (one for one in found["rankings"] if one["metric"] == "box AP"):
            control = next((entry for entry in ranking["entries"] if entry["control"]), None)
            rows = []
            for entry in ranking["entries"]:
                above = control and not entry["control"] and f"{entry['mean'] - control['mean']:+.1f}"
                half = f" ± {entry['half']:.1f}" if entry["half"] is not None else ""
                rows.append([entry["name"], f"{entry['mean']:.1f}{half}", above or "-", f"{entry['rate']:g}"])
            light = found["budget"] == "minutes"
            head = "light head, box AP" if light else f"Mask R-CNN {ranking['protocol']}, box AP"
            table = common.table(["encoder", f">{head}", ">- random", ">learning rate"], rows)
            grid = found["grid"][ranking["protocol"]]
            chosen = f"rates from {', '.join(f'{rate:g}' for rate in grid)}" if len(grid) > 1 else "one learning rate"
            options = f", {' '.join(found['options'])}" if found["options"] else ""
            seeds = f"{found['seeds']} seed{'s' * (found['seeds'] > 1)}"
            about = (
                f"**{found['data']}, budget {found['budget']}** ({chosen}, {seeds}{options}; "
                f"{found['seconds'] / 60:.0f} minutes of detectors): {found['headline']}"
            )
            verdicts = "\n".join(f"- {verdict}" for verdict in ranking["verdicts"])
            texts.append("\n\n".join(part for part in (about, table, verdicts) if part))
    return "\n\n".join(texts)


if __name__ == "__main__":
    common.main(sys.modules[__name__])

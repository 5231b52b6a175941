"""Studies whose tools are faked, and documents to put their figures into."""

import argparse
import json
import sys
from pathlib import Path

from checkout import ROOT

FOLDER = ROOT / "studies"
sys.path.append(str(FOLDER))

from rates import RATES, SHORT
from run import THIN18, Study

STAGES = ("res2", "res3", "res4", "res5")


def study_of(tmp_path, data=None, record=None):
    args = argparse.Namespace(imagenette=data, nuclei=None, output=tmp_path / "study", jobs=2, record=record)
    return Study(args)


def do(study, runs):
    """Runs, all of them as if for the first time."""
    study.seen.clear()
    study.work(lambda: runs)


def tune(study):
    study.work(study.grid)


def fake_call(self, run, tool, *arguments, accuracy=lambda run, stage: 50.0, machine="this one"):
    """What a tool leaves behind, without its work."""
    arguments = [str(argument) for argument in arguments]
    keys = dict(zip(arguments, arguments[1:], strict=False))
    folder = self.folder / run.name
    with open(folder / "cost.jsonl", "a") as f:
        cost = {"what": tool, "start": 1.8e9, "seconds": 120.0, "cpu_seconds": 90.0, "exit_code": 0, "machine": machine}
        f.write(json.dumps(cost) + "\n")
    if tool == "pretrain":
        out = folder / "pretrain"
        out.mkdir()
        (out / "config.yaml").write_text((folder / "recipe.yaml").read_text())
        (out / "metrics.json").write_text('{"iteration": 9}\n{"iteration": 19}\n')
        (out / "model_final.pth").write_bytes(b"")
        return
    out = Path(keys["OUTPUT_DIR"])
    out.mkdir()
    top1 = {stage: accuracy(run, stage) for stage in STAGES}
    if tool == "linear_probe":
        found = {"linear": {stage: {"top1": v, "held_out_top1": v - 1} for stage, v in top1.items()}}
    elif tool == "knn":
        found = {"knn": {stage: {"k200_t0.07": {"top1": v - 10}} for stage, v in top1.items()}}
    (out / "results.json").write_text(json.dumps(found))


def made_up(row, seed, held_out, test, **more):
    stages = {"linear": dict(zip(STAGES, test, strict=True)), "held_out": dict(zip(STAGES, held_out, strict=True))}
    run = {"scale": THIN18, "row": row, "rate": RATES[2], "epochs": SHORT, "seed": seed, "decoder": "MLP", **stages}
    return {**run, "knn": stages["linear"], "cpu_seconds": {}, "finished": "2026-11-22", "machine": "a", **more}


def write_documents(root):
    (root / "docs").mkdir()
    (root / "findings.md").write_text("LoCo has {linear loco 20 res5}, random {knn random 0 res2}.\n")
    sections = (
        "findings",
        "main",
        "stages",
        "rates",
        "table4",
        "table5",
        "settings",
        "reach",
        "crops",
        "rates96",
        "late",
        "resnet50",
        "detection",
    )
    (root / "docs" / "study.md").write_text(
        "before\n" + "".join(f"<!-- study: {name} -->\nold {name}\n<!-- end -->\n" for name in sections) + "after\n"
    )
    (root / "README.md").write_text("top\n<!-- study: row -->\n<!-- end -->\nbottom\n")

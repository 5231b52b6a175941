"""Readouts in tables: what each run found, and what is no readout."""

import json

import pytest
import yaml

from loco_det.report.readouts import readout_table, readouts_text
from loco_det.report.runs import table_text
from loco_det.report.seeds import seeds_text
from loco_det.runs.find import find_runs
from loco_det.runs.folder import read_run


def test_a_row_for_each_stage_and_setting(readouts):
    table = readout_table(find_runs(readouts))
    rows = table.texts()
    shared = {"encoder": "resnet18", "weights": "loco/model_final.pth"}
    linear = {"run": "linear", "state": "done", "readout": "linear", "dataset": "nette/val", "chosen on": "held-out",
              "k": "–", "temperature": "–"}  # fmt: skip
    knn = {"run": "knn", "state": "done", "readout": "kNN", "dataset": "nette/train (leave-one-out)", "stage": "res5",
           "learning rate": "–", "chosen on": "–"}  # fmt: skip
    begun = dict.fromkeys(rows[0], "–") | {"run": "begun", "state": "not finished", "dataset": "nette/val"}
    assert rows == [
        shared | linear | {"stage": "res4", "top-1": "50.50", "top-5": "90.00", "learning rate": "0.03"},
        shared | linear | {"stage": "res5", "top-1": "–", "top-5": "–", "learning rate": "all diverged"},
        shared | knn | {"k": "20", "temperature": "0.07", "top-1": "40.00", "top-5": "80.00"},
        shared | knn | {"k": "200", "temperature": "0.1", "top-1": "–", "top-5": "–"},
        begun,
    ]
    assert table.rows[2]["k"] == 20 and table.rows[0]["top-1"] == 50.5  # by which a column is sorted
    assert (
        "k" not in readout_table(find_runs(readouts[0])).texts()[0]
        and "chosen on" not in readout_table(find_runs(readouts[1])).texts()[0]
    )


def test_other_runs_are_not_among_them(tmp_path, detection, pretraining, readouts):
    runs = find_runs(tmp_path)
    assert [run.kind for run in runs] == ["detection", "detection", "pretraining"] + ["readout"] * 3
    assert {row["run"] for row in readout_table(runs).rows} == {f"readouts/{folder.name}" for folder in readouts}
    assert "readouts" not in table_text(runs) and readouts_text(find_runs(tmp_path / "demo")) == ""


def test_seeds_of_readouts_are_no_seeds_of_detection(tmp_path, readouts):
    for seed in (0, 1):
        readouts[seed].rename(tmp_path / f"seed{seed}")
    assert seeds_text(find_runs([tmp_path / "seed0", tmp_path / "seed1"])) == ""


@pytest.mark.parametrize("figures", [{"linear": 3}, {"linear": {"res5": 3}}, {"knn": []}, {"knn": {"res5": {"k1": 3}}}])
def test_damaged_results(tmp_path, readouts, figures):
    path = readouts[0] / "results.json"
    path.write_text(json.dumps(figures))
    with pytest.raises(ValueError, match="results.json is damaged"):
        read_run(readouts[0])
    rows = readout_table(find_runs(readouts)).texts()
    assert (rows[0]["state"], rows[0]["stage"], len(rows)) == ("damaged", "–", 4)


def test_a_result_without_anything_around_it(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"linear": {"res5": {}}, "weights": None}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(["no", "config"]))
    row = readout_table(find_runs(tmp_path)).texts()[0]
    assert (row["stage"], row["top-1"], row["encoder"], row["weights"]) == ("res5", "–", "–", "–")

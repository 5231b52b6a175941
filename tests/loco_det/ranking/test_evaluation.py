"""Reading an evaluation's folder, finished or not, and damaged."""

import json
import shutil

import pytest
import yaml
from made_up_evaluation import RATES, write_run, write_settings

from loco_det.ranking.evaluation import figure_of, read_evaluation


def row(evaluation, name):
    return next(row for row in evaluation.rows if row.name == name)


def test_a_folder(evaluation_folder):
    found = read_evaluation(evaluation_folder)
    assert [one.name for one in found.rows] == ["simclr", "loco", "odd", "random_resnet18"]
    assert (found.detectors, found.seeds, found.test_images, found.version) == (["frozen", "finetune"], 3, 50, "0.2.0")
    assert not found.is_light and found.commands == "loco-det train --config-file <x>"
    loco, control, odd = row(found, "loco"), row(found, "random_resnet18"), row(found, "odd")
    assert (loco.checkpoints, loco.sha256, loco.architecture) == (["loco.pth"], ["b" * 64], "resnet18")
    assert loco.conversions == [{"layout": "loco-det", "arch": "resnet18"}]
    assert [figure_of(run) for run in loco.seeds["frozen"].values()] == [6.0, 7.0, 8.0]
    assert list(loco.choices) == ["frozen"] and list(loco.choices["frozen"]) == RATES  # a single rate is not chosen
    assert loco.readouts["probe"].results.linear["res5"].top1 == 50.0
    assert found.control_of(loco) is control and found.control_of(control) is None and found.control_of(odd) is None
    assert odd.problem.startswith("the converter refused it") and not odd.seeds
    assert {seed: run.state for seed, run in control.seeds["finetune"].items()} == {
        0: "done", 1: "not run yet", 2: "done"
    }  # fmt: skip
    assert control.choices["frozen"][0.08].state == "its loss exploded"
    assert control.readouts["probe"].state == "not run yet"


def test_the_chosen_rate(evaluation_folder):
    found = read_evaluation(evaluation_folder)
    assert [row(found, name).chosen("frozen") for name in ("loco", "simclr", "random_resnet18")] == [0.08, 0.04, 0.02]
    assert row(found, "loco").chosen("finetune") == 0.01 and row(found, "odd").chosen("frozen") is None
    shutil.rmtree(evaluation_folder / "simclr" / "frozen" / "seed0")
    for seed in (1, 2):
        shutil.rmtree(evaluation_folder / "simclr" / "frozen" / f"seed{seed}")
    assert row(read_evaluation(evaluation_folder), "simclr").chosen("frozen") == 0.04  # the best on held-out images


def test_unfinished_and_damaged_runs_are_shown_as_such(evaluation_folder):
    frozen = evaluation_folder / "loco" / "frozen"
    (frozen / "seed0" / "results.json").write_text("{")
    (frozen / "seed1" / "results.json").unlink()
    (frozen / "seed2" / "results.json").write_text(json.dumps({"version": 99, "results": {}}))
    found = row(read_evaluation(evaluation_folder), "loco").seeds["frozen"]
    assert [run.state for run in found.values()] == ["damaged", "not finished", "of a later version"]
    shutil.rmtree(evaluation_folder / "loco")
    found = row(read_evaluation(evaluation_folder), "loco")
    assert {run.state for run in found.seeds["frozen"].values()} == {"not run yet"} and found.conversions == []


def test_several_checkpoints_for_the_seeds(evaluation_folder):
    rows = [{"name": "loco", "checkpoints": ["a.pth", "b.pth"], "sha256": ["1", "", "2"], "architecture": "resnet18"}]
    write_settings(evaluation_folder, rows=rows)
    (evaluation_folder / "loco" / "seed1").mkdir()
    (evaluation_folder / "loco" / "seed1" / "conversion.json").write_text('{"layout": "moco"}')
    loco = read_evaluation(evaluation_folder).rows[0]
    assert (loco.checkpoints, loco.sha256) == (["a.pth", "b.pth"], ["1", "2"])
    assert [found["layout"] for found in loco.conversions] == ["loco-det", "moco"]


def test_the_number_of_images_of_a_registered_data_set(evaluation_folder):
    write_settings(evaluation_folder, data={"name": "coco", "train": {"names": ["coco_2017_train"]}})
    assert read_evaluation(evaluation_folder).test_images is None
    task = {"per_class": {}, "curves": {"recall": [0.0], "0.50": [1.0], "0.50:0.95": [1.0]}}
    analysis = {"classes": ["car"], "images": 7, "tasks": {"bbox": task}, "confusion": {}}
    (evaluation_folder / "loco" / "frozen" / "seed0" / "analysis.json").write_text(json.dumps(analysis))
    assert read_evaluation(evaluation_folder).test_images == 7


def test_no_evaluation(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not an evaluation: it has no evaluation\.yaml"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"rows": [{"name": "../up"}]}, r"rows\[0\]\.name"),
        ({"rows": [{"name": ".."}]}, r"rows\[0\]\.name"),
        ({"rows": [{"name": "a", "problem": 3}]}, r"rows\[0\]\.problem"),
        ({"rows": [{"name": "a", "checkpoints": []}]}, r"rows\[0\]\.checkpoints"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": 10**9}, "seeds"),
        ({"protocols": ["odd"]}, r"protocols\[0\]"),
        ({"rates": {"frozen": [float("nan")]}}, "rates"),
        ({"data": None}, "data"),
        ({"version": "1"}, "version"),
    ],
)
def test_damaged_settings_are_named(evaluation_folder, changes, place):
    write_settings(evaluation_folder, **changes)
    with pytest.raises(ValueError, match=rf"evaluation\.yaml is damaged \({place}\)"):
        read_evaluation(evaluation_folder)


def test_settings_of_a_later_version_and_no_settings_at_all(evaluation_folder):
    write_settings(evaluation_folder, version=2)
    with pytest.raises(ValueError, match="has version 2, this loco-det reads up to 1"):
        read_evaluation(evaluation_folder)
    for text in ("", "- 1", "a: [", yaml.safe_dump([1])):
        (evaluation_folder / "evaluation.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"evaluation\.yaml"):
            read_evaluation(evaluation_folder)


def test_a_rate_that_was_rounded_is_that_of_the_grid(evaluation_folder):
    write_settings(evaluation_folder, rates={"frozen": [0.02, 0.028284271]})
    rows = [{"name": "new", "architecture": "resnet18"}]
    write_settings(evaluation_folder, rows=rows, seeds=1)
    write_run(evaluation_folder / "new" / "frozen" / "seed0", 5.0, rate=0.0282843)
    assert read_evaluation(evaluation_folder).rows[0].chosen("frozen") == 0.028284271

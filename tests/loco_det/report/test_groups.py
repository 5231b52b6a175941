"""Which runs stand together in a report, and what is said of those that do not."""

import pytest

from loco_det.report.groups import comparable, different, group_notes, numbers, together
from loco_det.report.runs import detection_table
from loco_det.report.seeds import seeds_table, seeds_verdicts
from loco_det.runs.folder import Run
from pretrain.files.results import Comparability, DetectionResults


@pytest.fixture
def run(tmp_path):
    """Make a run with an AP, by the place of its folder; key None: it is not known what it can be compared with."""

    def make(name, key, ap=1.0, **settings):
        tasks = {"bbox": {"AP": ap, "AP50": ap}, "segm": {"AP": ap, "AP50": ap}}
        known = Comparability(key, settings) if key else None
        results = DetectionResults(results=tasks, dataset="demo_val", comparability=known)
        return Run(tmp_path / name, name, "detection", results=results)

    return make


def begun(tmp_path):
    return Run(tmp_path / "begun", "begun", "detection", config_text="DATASETS: {TEST: [demo_val]}")


def test_runs_of_one_key_are_together_and_unknown_ones_alone(run, tmp_path):
    runs = [run("a", "1"), run("b", None), run("c", "2"), run("d", "1"), run("e", None), begun(tmp_path)]
    assert [[r.name for r in group] for group in comparable(runs).values()] == [["a", "d"], ["c"]]
    assert [[r.name for r in group] for group in together(runs)] == [["a", "d"], ["c"], ["b"], ["e"], ["begun"]]
    table = detection_table(runs)
    assert [row["group"] for row in table.rows] == [1, None, 2, 1, None, None]
    assert "group" in [column.name for column in table.columns]


def test_groups_are_numbered_only_if_there_are_several(run, tmp_path):
    one = [run("a", "1"), run("b", "1"), begun(tmp_path)]
    for runs in ([], one[:1], one, [run("a", None)], [run("a", None), run("b", None)]):
        assert numbers(runs) == {} and "group" not in [column.name for column in detection_table(runs).columns]
    assert numbers([*one, run("c", None)]) == {"1": 1}
    assert group_notes(one) == [] == group_notes([run("a", None), begun(tmp_path)])


def test_what_differs_is_said_in_one_line(run):
    common = {"loco-det": "0.2.0", "SOLVER.GAMMA": 0.1}
    short = common | {"MODEL.BACKBONE.FREEZE_AT": 5, "SOLVER.MAX_ITER": 350, "SOLVER.STEPS": [200, 300]}
    long = common | {"MODEL.BACKBONE.FREEZE_AT": 0, "SOLVER.MAX_ITER": 700, "SOLVER.STEPS": []}
    runs = [run("a", "1", **short), run("b", "2", **long), run("c", "3", **long | {"SOLVER.MAX_ITER": 90})]
    assert group_notes(runs) == [
        "Runs of groups 1, 2 and 3 cannot be compared with each other: iterations 350 / 700 / 90; learning rate falls "
        "at 200, 300 / none / none; backbone frozen / fine-tuned / fine-tuned."
    ]
    assert group_notes([*runs[:1], run("old", None)]) == [
        "It is not known what can be compared with old: results.json does not say it; train_net.py --eval-only "
        "--resume in their folders writes it anew."
    ]


def test_values_are_readable():
    first = {"data.train": ["0123456789abcdef" * 4], "classes": ["car", "ox"], "MODEL.FPN.NORM": "", "x": [[1, 2], [3]]}
    second = {
        "data.train": ["ab" * 32 + ":1k"],
        "classes": ["car"],
        "MODEL.FPN.NORM": "BN",
        "x": [],
        "images.test": [3],
    }
    assert different([first, second]) == [
        "training data (SHA-256) 01234567 / abababab:1k",
        "test images – / 3",
        "classes 2 (car, ox) / 1 (car)",
        "MODEL.FPN.NORM none / BN",
        "and 1 more",
    ]
    assert different([first, first]) == []


def test_seeds_and_controls_are_compared_only_with_equal_keys(run):
    def runs(key_of_last, key_of_controls):
        found = []
        for seed in (0, 1, 2):
            found.append(run(f"seed{seed}/frozen_a", key_of_last if seed == 2 else "1", ap=5.0 + seed))
            found.append(run(f"seed{seed}/frozen_random", key_of_controls, ap=1.0 + seed))
        return found

    assert [row["seeds"] for row in seeds_table(runs("1", "1")).rows] == ["0, 1, 2"] * 3
    assert len(seeds_verdicts(runs("1", "1"))) == 2
    assert [row["seeds"] for row in seeds_table(runs("2", "1")).rows] == ["0, 1", "0, 1, 2", "0, 1"]
    assert [row["seeds"] for row in seeds_table(runs(None, "2")).rows] == ["0, 1", "0, 1, 2"]
    assert seeds_verdicts(runs("1", "2")) == [] and not seeds_table(runs(None, None)).rows[1:]

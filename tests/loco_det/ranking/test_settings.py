"""evaluation.yaml: what a folder was begun with, and what may be added to it."""

import dataclasses

import pytest
import yaml

from loco_det.ranking.settings import FILE, Candidate, Settings, join_before

BASE = Settings(
    data={"name": "demo"},
    budget="short",
    protocols=["frozen"],
    seeds=2,
    rates={"frozen": [0.1, 0.2]},
    held_out=20,
    options=[],
    overlays=[],
    labelled=[],
    notes=[],
    rows=[Candidate("a", ["a.pth"])],
)


def other(**changes):
    return dataclasses.replace(BASE, **{"rows": list(BASE.rows), **changes})


def test_a_new_folder(tmp_path):
    assert join_before(other(), tmp_path) == BASE
    BASE.write(tmp_path)
    content = yaml.safe_load((tmp_path / FILE).read_text())
    assert content["rows"][0]["name"] == "a" and content["version"] == 1 and content["loco_det"]
    assert join_before(other(), tmp_path) == BASE


def test_rows_seeds_and_protocols_are_added(tmp_path):
    BASE.write(tmp_path)
    with_control = other(rows=[Candidate("random_x", ["random"], control=True), *BASE.rows])
    with_control.write(tmp_path)
    joined = join_before(other(rows=[Candidate("b", ["b.pth"])]), tmp_path)
    assert [row.name for row in joined.rows] == ["a", "b", "random_x"]
    BASE.write(tmp_path)
    now = other(rows=[Candidate("b", ["b.pth"])], seeds=1, protocols=["finetune"], rates={"finetune": [0.3]})
    joined = join_before(now, tmp_path)
    assert [row.name for row in joined.rows] == ["a", "b"] and joined.seeds == 2
    assert joined.protocols == ["frozen", "finetune"]
    assert joined.rates == {"frozen": [0.1, 0.2], "finetune": [0.3]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "paper"}, r"other settings \(budget\).*choose another --output"),
        ({"data": {"name": "voc"}, "options": ["A", "1"]}, r"\(data, options\)"),
        ({"rates": {"frozen": [0.1]}}, r"\(rates of frozen\)"),
        ({"rows": [Candidate("a", ["x.pth"])]}, "has a row a of a.pth: give this one another name, NAME=x.pth"),
        ({"rows": [Candidate("b", ["x.pth", "y.pth"])], "seeds": 3}, "3 seeds in all rows, but b has 2 checkpoints"),
    ],
)
def test_other_settings_are_refused(tmp_path, changes, message):
    BASE.write(tmp_path)
    with pytest.raises(ValueError, match=message):
        join_before(other(**changes), tmp_path)


def test_seeds_are_not_added_to_a_row_with_a_checkpoint_for_each(tmp_path):
    """Two seeds of one checkpoint would pass for two pretrainings."""
    other(rows=[Candidate("a", ["a.pth", "b.pth"])]).write(tmp_path)
    with pytest.raises(ValueError, match="would have 3 seeds in all rows, but a has 2 checkpoints"):
        join_before(other(rows=[Candidate("b", ["x.pth"])], seeds=3), tmp_path)


def test_readouts_are_added_later(tmp_path):
    BASE.write(tmp_path)
    joined = join_before(other(protocols=["knn"], rates={}, labelled=["x", "y"]), tmp_path)
    assert joined.protocols == ["frozen", "knn"] and joined.labelled == ["x", "y"]
    joined.write(tmp_path)
    assert join_before(other(), tmp_path).labelled == ["x", "y"]
    with pytest.raises(ValueError, match=r"\(labelled\)"):
        join_before(other(protocols=["knn"], labelled=["x", "z"]), tmp_path)


def test_what_failed_is_tried_again(tmp_path):
    rows = [Candidate("a", ["a.pth"], problem="refused"), Candidate("b", ["b.pth"], problem="refused")]
    other(rows=[*rows, Candidate("random_x", ["random"], True, "x", problem="refused")]).write(tmp_path)
    joined = join_before(other(), tmp_path)
    assert {row.name: row.problem for row in joined.rows} == {"a": "", "b": "refused", "random_x": ""}


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "results.json").touch()
    with pytest.raises(ValueError, match=r"has the results\.json of something else: choose another --output"):
        join_before(other(), tmp_path)
    BASE.write(tmp_path)
    assert join_before(other(), tmp_path) == BASE


def test_where_a_backbone_is():
    assert Candidate("a", ["a.pth"]).place(1) == "a"
    assert Candidate("a", ["a.pth", "b.pth"]).place(1) == "a/seed1"
    assert Candidate("random_resnet18", ["random"], control=True).place(0) == "random_resnet18/seed0"

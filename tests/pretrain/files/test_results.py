"""results.json: what is read is what was written; damaged, newer and older files; and the page that documents it."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from pretrain.files.results import (
    KINDS,
    VERSION,
    Accuracies,
    DetectionResults,
    KnnKey,
    KnnResults,
    LinearResults,
    LinearStage,
    NewerVersionError,
    Published,
    read_results,
)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "run_folders.md"
GOOD = {  # as loco-det 0.1 wrote them: without a version, readouts without a kind
    "detection": {"results": {"bbox": {"AP": 1.5, "APs": None}}, "weights": "a.pkl", "iteration": 3, "problems": []},
    "test sets": {"results": {"val": {"bbox": {"AP": 1}}, "test": {"bbox": {"AP": None}}}, "published": None},
    "linear": {"linear": {"res5": {"top1": 50.0, "lr": None}}, "weights": {"path": "a.pth", "arch": "resnet18"}},
    "knn": {"knn": {"res5": {"k20_t0.07": {"top1": 40.0}, "k200_t1e-05": {"top1": None}}}},
}
READ = {
    "detection": DetectionResults(
        results={"bbox": {"AP": 1.5, "APs": None}}, weights="a.pkl", iteration=3, problems=[]
    ),
    "test sets": DetectionResults(results={"val": {"bbox": {"AP": 1}}, "test": {"bbox": {"AP": None}}}),
    "linear": LinearResults(
        linear={"res5": LinearStage(top1=50.0)}, weights={"path": "a.pth", "arch": "resnet18"}
    ),
    "knn": KnnResults(knn={"res5": {KnnKey(20, 0.07): Accuracies(40.0), KnnKey(200, 1e-05): Accuracies()}}),
}  # fmt: skip
BAD = [
    ("detection", {"results": {"bbox": 3}}), ("detection", {"results": {"bbox": {"AP": "1"}}}),
    ("detection", {"results": {"bbox": {"AP": float("inf")}}}), ("detection", {"results": []}),
    ("detection", {"results": None}), ("detection", {"weights": {"path": "a"}}), ("detection", {"weights": "a\0"}),
    ("detection", {"iteration": 10**400}), ("detection", {"iteration": True}), ("detection", {"seconds": "3"}),
    ("detection", {"problems": [3]}), ("detection", {"published": {"box_ap": 1.0}}), ("detection", {"published": [1]}),
    ("detection", {"published": {"row": "a", "differences": "b"}}), ("detection", {"thing_classes": [None]}),
    ("detection", {"comparability": {"key": 3, "settings": {}}}), ("detection", {"comparability": {"key": "1"}}),
    ("detection", {"category_ids": ["1"]}), ("detection", {"dataset": ["a"]}), ("detection", {"schedule": 1}),
    ("detection", {"version": "1"}), ("detection", {"version": 0}), ("detection", {"version": 1.5}),
    ("detection", {"kind": "luck"}), ("knn", {"kind": ["knn"]}),
    ("linear", {"weights": "a.pth"}), ("linear", {"linear": {"res5": None}}),
    ("linear", {"linear": {"res5": {"lr": "1"}}}), ("linear", {"linear": {"res5": {"sweep": [1]}}}),
    ("linear", {"protocol": {"base_lr": 0.1}}), ("linear", {"protocol": {"chosen_on": "luck"}}),
    ("knn", {"knn": {"res5": {"k_t": {}}}}), ("knn", {"knn": {"res5": {"k20_t0.07": 40.0}}}),
    ("knn", {"knn": {"res5": {f"k20_t{'9' * 400}": {}}}}), ("knn", {"images": {"train": "9"}}),
]  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_files_of_earlier_versions(tmp_path, kind):
    (tmp_path / "results.json").write_text(json.dumps(GOOD[kind]))
    assert read_results(tmp_path / "results.json") == READ[kind]


@pytest.mark.parametrize(("kind", "change"), BAD)
def test_a_value_of_another_type_is_named(tmp_path, kind, change):
    (tmp_path / "results.json").write_text(json.dumps({**GOOD[kind], **change}))
    with pytest.raises(
        ValueError, match=rf"results\.json is damaged \({next(iter(change))}.*\): evaluate that run again"
    ):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("content", [[], None, 3, "results"])
def test_what_is_no_dict(tmp_path, content):
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"results\.json is damaged \(content\)"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("kind", GOOD)
def test_a_file_of_a_later_version_is_refused_whatever_is_in_it(tmp_path, kind):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"kind": GOOD[kind].get("kind", "detection"), "version": VERSION + 1, "results": 3}))
    for read in (read_results, DetectionResults.read):
        with pytest.raises(NewerVersionError, match=rf"has version {VERSION + 1} .* reads up to {VERSION}") as error:
            read(path)
        assert "\n" not in str(error.value)


FULL = [
    DetectionResults(
        results={"bbox": {"AP": 1.5, "APl": None}}, dataset="a, b", seconds=3.5, frozen=True, category_ids=[1, 7],
        published=Published("LoCo", 34.5, None, ["schedule"]), weights_metadata={"sha256": "0"}, problems=["x: y"],
    ),
    LinearResults(
        protocol={"base_lr": [0.1, 1.0], "chosen_on": "held-out"}, images={"classes": 10},
        linear={"res5": LinearStage(50.0, None, 0.1, 49.0, {"0.1": {"top1": 50.0, "held_out_top1": 49.0}})},
    ),
    KnnResults(knn={"res5": {KnnKey(200, 0.07): Accuracies(50.0, 80.0)}}, weights={"path": "a.pth"}, seconds=1.0),
]  # fmt: skip


@pytest.mark.parametrize("results", FULL, ids=lambda results: results.KIND)
def test_what_is_written_is_read(tmp_path, results):
    path = tmp_path / "results.json"
    results.write(path)
    content = json.loads(path.read_text())
    assert (content["kind"], content["version"]) == (results.KIND, VERSION)
    assert content.keys() == {"kind", "version", "loco_det", *(part.name for part in dataclasses.fields(results))}
    assert read_results(path) == results == type(results).read(path)
    for other in KINDS.values():
        if other is not type(results):
            with pytest.raises(ValueError, match="has results of another kind"):
                other.read(path)


def test_nothing_that_is_no_number_is_written(tmp_path):
    (tmp_path / "results.json").write_text("before")
    with pytest.raises(ValueError):
        DetectionResults(results={"bbox": {"AP": math.nan}}).write(tmp_path / "results.json")
    assert (tmp_path / "results.json").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("classes", "there"), [(6, True), (5, False), (None, False)])
def test_top5_is_there_above_5_classes(classes, there):
    images = classes and {"classes": classes}
    knn = KnnResults(knn={"res5": {KnnKey(1, 0.1): Accuracies(1.0)}}, images=images).to_json()["knn"]
    linear = LinearResults(linear={"res5": LinearStage(1.0)}, images=images).to_json()["linear"]
    assert ("top5" in knn["res5"]["k1_t0.1"], "top5" in linear["res5"]) == (there, there)


@pytest.mark.parametrize(
    ("key", "text"), [(KnnKey(200, 0.07), "k200_t0.07"), (KnnKey(1, 1), "k1_t1"), (KnnKey(20, 1e-05), "k20_t1e-05")]
)
def test_the_text_of_a_setting(key, text):
    assert str(key) == text and KnnKey.parse(text) == key


@pytest.mark.parametrize(
    "text", ["", "k20", "k20_t", "k_t0.1", "k20_t-1", "k20_tnan", "k20_t0.1 ", "k2.5_t1", "20_0.1"]
)
def test_what_is_no_setting(text):
    with pytest.raises(ValueError, match="is no setting of kNN"):
        KnnKey.parse(text)


def test_evaluations_have_the_same_form_for_one_test_set_and_for_several():
    one, several = READ["detection"], READ["test sets"]
    assert one.evaluations() == {"–": one.results} and one.evaluations("val") == {"val": one.results}
    assert DetectionResults(results={}, dataset="a").evaluations("val") == {"a": {}}
    assert several.evaluations("x") == several.results


def test_every_key_is_documented_as_the_code_has_it():
    """docs/run_folders.md has a line for each field; this test says what it has to be."""
    lines = PAGE.read_text().splitlines()
    for kind in KINDS.values():
        for part in dataclasses.fields(kind):
            assert f"| `{part.name}` | {part.metadata['doc']} |" in lines, (kind.KIND, part.name)
    keys = {line.split("`")[1] for line in lines if line.startswith("| `")}
    known = {part.name for kind in KINDS.values() for part in dataclasses.fields(kind)}
    assert keys - known == {"kind", "version", "loco_det"} and f"`{VERSION}`" in PAGE.read_text()

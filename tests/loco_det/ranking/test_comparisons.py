"""Rankings: means, intervals and differences against scipy's, groups of equal keys, and what is said of them."""

import json

import numpy as np
import pytest
from made_up_evaluation import FROZEN, write_settings
from scipy import stats

from loco_det.ranking.comparisons import headlines, rank
from loco_det.ranking.evaluation import read_evaluation
from loco_det.ranking.sampling import ImageError


def ranked(folder, sampled=None):
    evaluation = read_evaluation(folder)
    return evaluation, rank(evaluation, sampled)


def chosen(rankings, protocol, task="bbox"):
    return [one for one in rankings if (one.protocol, one.task) == (protocol, task)]


def test_rankings_with_their_intervals(evaluation_folder):
    _, rankings = ranked(evaluation_folder)
    assert [(one.protocol, one.task) for one in rankings] == [
        ("frozen", "bbox"), ("frozen", "segm"), ("finetune", "bbox"), ("finetune", "segm")
    ]  # fmt: skip
    frozen = chosen(rankings, "frozen")[0]
    assert [entry.row.name for entry in frozen.entries] == ["loco", "simclr", "random_resnet18"]
    for entry in frozen.entries:
        values = FROZEN[entry.row.name]
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (entry.mean - entry.half, entry.mean + entry.half) == pytest.approx((low, high), rel=1e-4)
    masks = chosen(rankings, "frozen", "segm")[0]
    assert masks.metric == "mask AP" and masks.entries[0].mean == 3.5
    assert [entry.row.name for entry in chosen(rankings, "finetune")[0].entries][0] == "simclr"


def test_differences_are_paired_by_seed(evaluation_folder):
    _, rankings = ranked(evaluation_folder)
    frozen = chosen(rankings, "frozen")[0]
    assert [(one.first, one.second, one.kind) for one in frozen.comparisons] == [
        ("loco", "random_resnet18", "control"),
        ("simclr", "random_resnet18", "control"),
        ("loco", "simclr", "neighbour"),
    ]
    for one in frozen.comparisons:
        low, high = stats.ttest_rel(FROZEN[one.first], FROZEN[one.second]).confidence_interval(0.95)
        mean, half, seeds = one.difference
        assert (mean - half, mean + half, seeds) == pytest.approx((low, high, 3), rel=1e-4)
    assert "loco is above chance (random_resnet18) by 2.5 ± 1.2 box AP" in frozen.comparisons[0].sentence
    assert "loco and simclr cannot be told apart" in frozen.comparison("loco", "neighbour").sentence
    assert frozen.comparison("loco").over_images is None
    finetune = chosen(rankings, "finetune")[0]
    assert finetune.comparison("simclr").difference.seeds == 2  # the control lacks a seed
    assert finetune.entry("random_resnet18").missing == {1: "not run yet"} and finetune.entry("odd") is None


def test_the_headline(evaluation_folder):
    evaluation, rankings = ranked(evaluation_folder)
    assert headlines(evaluation, rankings) == [
        "Frozen, loco is best of 2: 7.0 box AP, random 4.5: +2.5 ± 1.2, 3 seeds, 50 images; it cannot be told apart "
        "from simclr.",
        "Fine-tuned, simclr is best of 2: 15.0 box AP, random 9.0: +6.0 ± 12.7 (not above chance), 2 seeds that both "
        "have, 50 images.",
    ]


def test_the_headline_of_one_encoder_one_seed(evaluation_folder):
    rows = [{"name": "loco", "architecture": "resnet18"}, {"name": "random_resnet18", "control": True}]
    rows[1]["architecture"] = "resnet18"
    write_settings(evaluation_folder, rows=rows, seeds=1, protocols=["frozen"])
    assert headlines(*ranked(evaluation_folder)) == ["loco frozen 6.0 box AP, random 4.0: +2.0, one seed, 50 images."]
    write_settings(evaluation_folder, budget="minutes")
    assert headlines(*ranked(evaluation_folder)) == [
        "loco with a light head 6.0 box AP, random 4.0: +2.0, one seed, 50 images."
    ]
    write_settings(evaluation_folder, rows=rows[:1], budget="short", data={"name": "coco"})
    assert headlines(*ranked(evaluation_folder)) == ["loco frozen 6.0 box AP, no random control, one seed."]
    write_settings(evaluation_folder, rows=[{"name": "new"}])
    assert headlines(*ranked(evaluation_folder)) == ["No detector has been evaluated yet."]


def test_a_control_of_another_architecture_is_none(evaluation_folder):
    rows = [{"name": "loco", "architecture": "resnet50"}, {"name": "random_resnet18", "control": True}]
    rows[1]["architecture"] = "resnet18"
    write_settings(evaluation_folder, rows=rows)
    evaluation, rankings = ranked(evaluation_folder)
    assert evaluation.control_of(evaluation.rows[0]) is None
    assert [one.kind for one in chosen(rankings, "frozen")[0].comparisons] == ["neighbour"]


@pytest.fixture
def keyed(evaluation_folder, monkeypatch):
    """simclr's frozen runs have another key than the others."""

    def comparability(run):
        iterations = 80 if "simclr" in run.folder.parts and run.results else 40
        settings = {"SOLVER": {"MAX_ITER": iterations, "STEPS": "10"}}
        return {"key": f"key{iterations}", "settings": settings} if run.results else {}

    monkeypatch.setattr("loco_det.ranking.comparisons.comparability", comparability)
    return evaluation_folder


def test_only_equal_keys_are_compared(keyed):
    _, rankings = ranked(keyed)
    first, second = chosen(rankings, "frozen")
    assert [entry.row.name for entry in first.entries] == ["loco", "random_resnet18"] and first.note == ""
    assert (first.key, second.key) == ("key40", "key80")
    assert [entry.row.name for entry in second.entries] == ["simclr"] and second.comparisons == []
    assert second.note == ("Not comparable with the ranking above: other settings (SOLVER.MAX_ITER 80, above 40).")
    assert "Frozen" not in headlines(*ranked(keyed))[0] and "loco frozen 7.0" in headlines(*ranked(keyed))[0]


def test_seeds_of_other_settings_are_apart(evaluation_folder, monkeypatch):
    def comparability(run):
        return {"key": "other" if run.folder.name == "seed2" and "loco" in run.folder.parts else "usual"}

    monkeypatch.setattr("loco_det.ranking.comparisons.comparability", comparability)
    first, second = chosen(ranked(evaluation_folder)[1], "frozen")
    assert first.entry("loco").values == {0: 6.0, 1: 7.0} and second.entry("loco").values == {2: 8.0}
    assert second.entry("loco").half is None and "their key differs" in second.note


def test_runs_that_do_not_say_their_settings(evaluation_folder, monkeypatch):
    found = {"key": "a", "settings": {}}
    monkeypatch.setattr(
        "loco_det.ranking.comparisons.comparability", lambda run: {} if "simclr" in run.folder.parts else found
    )
    first, second = chosen(ranked(evaluation_folder)[1], "frozen")
    assert (first.key, second.key) == ("a", None) and "do not say under which settings" in second.note


def test_the_interval_over_images_is_asked_for_with_the_paired_runs(evaluation_folder):
    calls = []

    def sampled(first, second, task):
        calls.append(([run.folder.name for run in first], [run.folder.name for run in second], task))
        return ImageError(2.5, 3.0, -0.5, 5.5, 50, 200)

    evaluation, rankings = ranked(evaluation_folder, sampled)
    assert calls[0] == (["seed0", "seed1", "seed2"],) * 2 + ("bbox",)
    assert (["seed0", "seed2"],) * 2 + ("segm",) in calls  # fine-tuned: the seeds that both have
    one = chosen(rankings, "frozen")[0].comparison("loco")
    assert one.over_images.half == 3.0
    assert one.sentence == (
        "loco and chance (random_resnet18) cannot be told apart on these 50 test images: +2.5 ± 3.0 box AP "
        "(95 % interval over test images; ± 1.2 over 3 seeds)."
    )
    assert "+2.5 ± 1.2 (not above chance)" in headlines(evaluation, rankings)[0]


def with_published(folder, differences=(), seeds=(0, 1, 2)):
    for seed in seeds:
        path = folder / "loco" / "frozen" / f"seed{seed}" / "results.json"
        row = {"row": "LoCo", "box_ap": 34.5, "mask_ap": 32.0, "differences": list(differences)}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"published": row}))


def test_published_figures_only_of_the_same_row(evaluation_folder):
    with_published(evaluation_folder, seeds=(0,))
    assert chosen(ranked(evaluation_folder)[1], "frozen")[0].entry("loco").published is None  # not all seeds are it
    with_published(evaluation_folder)
    rankings = ranked(evaluation_folder)[1]
    assert chosen(rankings, "frozen")[0].entry("loco").published == 34.5
    assert chosen(rankings, "frozen", "segm")[0].entry("loco").published == 32.0
    write_settings(evaluation_folder, budget="minutes")  # a light head is no Mask R-CNN
    assert chosen(ranked(evaluation_folder)[1], "frozen")[0].entry("loco").published is None
    write_settings(evaluation_folder, budget="short")
    with_published(evaluation_folder, ["schedule"])
    assert chosen(ranked(evaluation_folder)[1], "frozen")[0].entry("loco").published is None


def test_no_figures_are_no_ranking(evaluation_folder):
    path = evaluation_folder / "loco" / "frozen" / "seed0" / "results.json"
    content = json.loads(path.read_text())
    content["results"] = {"bbox": {"AP": None}}
    path.write_text(json.dumps(content))
    entry = chosen(ranked(evaluation_folder)[1], "frozen")[0].entry("loco")
    assert entry.values == {1: 7.0, 2: 8.0} and entry.missing == {0: "no box AP"} and np.isfinite(entry.mean)

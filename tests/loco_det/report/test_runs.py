"""Finding runs, and the tables of them."""

import json
import statistics

import pytest
import yaml
from detectron2.config import get_cfg

from loco_det.config import add_loco_config
from loco_det.report.page import render, render_markdown, write_report
from loco_det.report.runs import table_text
from loco_det.report.seeds import seeds_text, seeds_verdicts
from loco_det.runs.find import find_runs
from loco_det.runs.folder import read_run
from pretrain.files.results import Published
from pretrain.files.shipped_configs import CONFIGS

SAME = {"key": "0" * 12, "settings": {}}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_finds_runs(tmp_path, detection, pretraining):
    assert [run.name for run in find_runs(tmp_path)] == ["finetune", "frozen", "loco"]
    runs = find_runs([pretraining, tmp_path / "demo", pretraining])
    assert [run.name for run in runs] == ["loco", "finetune", "frozen"]
    assert [run.name for run in find_runs(str(pretraining))] == ["loco"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no runs at or beneath"):
        find_runs(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="missing is not a folder"):
        find_runs(tmp_path / "missing")


def test_same_folder_names_are_told_apart(tmp_path, training_line, write_lines):
    for seed in ("seed1/frozen", "seed2/frozen"):
        (tmp_path / seed).mkdir(parents=True)
        write_lines(tmp_path / seed / "metrics.json", [training_line(19)])
    assert [run.name for run in find_runs(tmp_path)] == ["seed1/frozen", "seed2/frozen"]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"CONV_BLOCKS": 0, "EXPANSION": 2048, "MLP_LAYERS": 3}, "no conv block, 1x1 conv 2048, MLP 8192-8192-64"),
        ({"STAGES": 1, "TIE": 0.001}, "copy of the next stage, tied 0.001, 1 conv block, MLP 8192-64"),
        ({"STAGES": -1, "CONV_BLOCKS": 2, "DOWNSAMPLE": True},
         "copy of all stages above, 2 conv blocks, downsampling, MLP 8192-64"),
    ],
)  # fmt: skip
def test_decoders_are_named(tmp_path, detection, pretraining, keys, text):
    config = yaml.safe_load((pretraining / "config.yaml").read_text())
    config["MODEL"]["DECODER"] = {"CONV_BLOCKS": 1, "HIDDEN_DIM": 8192, "OUT_DIM": 64, **keys}
    (pretraining / "config.yaml").write_text(yaml.safe_dump(config))
    assert text in cells(table_text(find_runs(tmp_path)).splitlines()[-1])


def test_table(tmp_path, detection):
    header, rule, interrupted, done = table_text(find_runs(tmp_path)).splitlines()
    assert len({len(line) for line in (header, rule, interrupted, done)}) == 1  # aligned
    row = dict(zip(cells(header), cells(done), strict=True))
    assert row == {
        "run": "frozen", "backbone": "ResNet-18", "weights": "loco/backbone.pkl",
        "decoder": "1 conv block, downsampling, MLP 512-128", "trained": "frozen", "dataset": "demo_val",
        "iterations": "300", "time": "2 min 03 s", "state": "done", "schedule": "300 x 2 images",
        "box AP": "12.3", "box AP50": "30.1", "mask AP": "10.1", "mask AP50": "30.1", "box AP75": "7.0",
        "mask AP75": "7.0",
    }  # fmt: skip
    row = dict(zip(cells(header), cells(interrupted), strict=True))
    assert (row["iterations"], row["time"], row["weights"]) == ("120 of 300", "1 min 00 s", "–")
    assert (row["trained"], row["dataset"], row["mask AP"]) == ("fine-tuned", "demo_val", "–")
    assert row["state"] == "not finished"


def test_published_figure_stands_beside_the_run(tmp_path, detection):
    results = json.loads((detection[0] / "results.json").read_text())
    results["published"] = {"row": "Table 2, LoCo", "box_ap": 14.5, "mask_ap": None, "differences": []}
    results |= {"peak_memory": 2.34e9, "schedule": "1x", "decoder": "none at all", "freeze_at": 2, "frozen": False}
    (detection[0] / "results.json").write_text(json.dumps(results))
    config = yaml.safe_load((detection[1] / "config.yaml").read_text())
    config["PUBLISHED"] = {"ROW": "Table 3, LoCo", "BOX_AP": 27.8, "MASK_AP": 25.6}
    (detection[1] / "config.yaml").write_text(yaml.safe_dump(config))
    header, _, begun, done = table_text(find_runs(tmp_path / "demo")).splitlines()
    row = dict(zip(cells(header), cells(done), strict=True))
    assert (row["published row"], row["published box AP"], row["box AP − published"]) == (
        "Table 2, LoCo",
        "14.5",
        "-2.2",
    )
    assert row["memory"] == "2.3 GB" and not {"published mask AP", "mask AP − published"} & row.keys()  # of no run
    assert (row["schedule"], row["decoder"], row["trained"]) == ("1x", "none at all", "fine-tuned above res2")
    row = dict(zip(cells(header), cells(begun), strict=True))
    assert (row["published row"], row["box AP − published"]) == ("–", "–")  # nothing to compare with yet


ROW = {"row": "LoCo 800 epochs, R50, frozen, COCO 1x (LoCo, Table 2)", "box_ap": 34.5, "mask_ap": 32.0}
OTHER = {**ROW, "differences": ["weights (x, the row has y)", "schedule (4 iterations, the row has 90000)"]}


def test_no_published_figure_beside_another_run(tmp_path, detection):
    results = json.loads((detection[0] / "results.json").read_text())
    (detection[0] / "results.json").write_text(json.dumps({**results, "published": OTHER, "comparability": SAME}))
    write_aps(tmp_path / "a_seed0", 1.0, 1.0, 1.0, 1.0, published={**ROW, "differences": []})
    write_aps(tmp_path / "a_seed1", 3.0, 1.0, 1.0, 1.0, published=OTHER)
    runs = find_runs([detection[0], tmp_path / "a_seed0", tmp_path / "a_seed1"])
    header, _, done, same, other, *notes = table_text(runs).splitlines()
    for line, expected in ((done, ("–", "another: see below")), (same, ("34.5", ROW["row"]))):
        row = dict(zip(cells(header), cells(line), strict=True))
        assert (row["published box AP"], row["published row"]) == expected
    text = f"differs from the published row ({ROW['row']}) in: {', '.join(OTHER['differences'])}."
    assert [note.endswith(text) for note in notes] == [True, True] and "frozen differs" in notes[0]
    assert "34.5" not in seeds_text(runs) and "published" not in seeds_text(runs)
    page = write_report(runs, tmp_path / "page.html", tmp_path / "page.md")
    assert page.read_text().count(text) == 2 and (tmp_path / "page.md").read_text().count(text) == 2


def test_results_of_earlier_versions_are_compared_by_their_config(tmp_path):
    """They have no differences of their own; their converter did not write of which pretraining the weights are."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "detection/coco_frozen/resnet50_supervised.yaml"))
    row = {"row": cfg.PUBLISHED.ROW, "box_ap": 33.9, "mask_ap": 31.3}
    weights = {"weights": "a.pkl", "weights_metadata": {"source": "resnet50.pth", "sha256": "0676ba61" + "0" * 56}}
    write_aps(tmp_path / "a", 33.0, 50.0, 31.0, 50.0, published=row, iteration=90000, **weights)
    (tmp_path / "a" / "config.yaml").write_text(cfg.dump())
    assert read_run(tmp_path / "a").published == Published(**row, differences=[])
    cfg.SOLVER.MAX_ITER = 4
    (tmp_path / "a" / "config.yaml").write_text(cfg.dump())
    assert read_run(tmp_path / "a").published.differences == ["schedule (4 iterations, the row has 90000)"]
    (tmp_path / "a" / "config.yaml").write_text("MODEL: []")
    assert read_run(tmp_path / "a").published.differences


def test_seeds_in_the_names_of_runs_beside_the_published_mean(tmp_path):
    published = {"row": "Table 3, LoCo, 1K", "box_ap": 13.9, "mask_ap": 13.8, "differences": []}
    for seed, ap in enumerate((11.0, 13.0)):
        write_aps(tmp_path / f"coco_1k_seed{seed}", ap, 20.0, ap + 1, 20.0, published=published)
        write_aps(tmp_path / "low" / f"seed{seed}", ap, 20.0, ap, 20.0)
    header, _, *rows = map(cells, seeds_text(find_runs(tmp_path)).splitlines())
    low, named = sorted((dict(zip(header, row, strict=True)) for row in rows), key=lambda row: row["run"], reverse=True)
    assert (named["run"], named["box AP"], named["published box AP"]) == ("coco_1k_seed*", "12.0 ± 1.4", "13.9")
    assert (named["mean − published box AP"], named["mean − published mask AP"]) == ("-1.9", "-0.8")
    assert (low["run"], low["published box AP"], low["mean − published box AP"]) == ("low/seed*", "–", "–")


def test_table_of_several_test_sets_evaluated_only(tmp_path, training_line, write_lines):
    aps = {"a_val": {"bbox": {"AP": 1}}, "b_val": {"bbox": {"AP": 2}, "segm": {"AP": None}}}
    results = {"dataset": "a_val, b_val", "iteration": None, "seconds": None, "weights": "x.pth", "results": aps}
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_lines(tmp_path / "metrics.json", [training_line(19)])  # tells what results.json leaves open
    _, _, *rows = table_text(find_runs(tmp_path)).splitlines()
    assert all("10 s" in row and " 20 " in row for row in rows)
    assert ["a_val" in rows[0], " 1.0 " in rows[0], "b_val" in rows[1], " 2.0 " in rows[1]] == [True] * 4
    assert len(rows) == 2


def test_table_without_detection_runs(pretraining):
    assert table_text(find_runs(pretraining)) == ""


def write_aps(folder, *aps, **more):
    """The results.json of a run with box AP, box AP50, mask AP and mask AP50, that can be compared with others."""
    folder.mkdir(parents=True)
    tasks = {
        "bbox": dict(zip(("AP", "AP50"), aps[:2], strict=True)),
        "segm": dict(zip(("AP", "AP50"), aps[2:], strict=True)),
    }
    (folder / "results.json").write_text(
        json.dumps({"dataset": "demo_val", "results": tasks, "comparability": SAME} | more)
    )


def test_seeds(tmp_path, training_line, write_lines):
    loco, random = (10.0, 12.0, 17.0), (9.0, 10.0, 11.0)
    for seed, (a, b) in enumerate(zip(loco, random, strict=True)):
        write_aps(tmp_path / f"seed{seed}" / "frozen_loco", a, 2 * a, a + 1, None if seed == 1 else 30.0)
        write_aps(tmp_path / f"seed{seed}" / "frozen_random", b, b, b, 30.0)
    write_aps(tmp_path / "seed0" / "finetune_loco", 50.0, 50.0, 50.0, 50.0)  # of one seed only
    write_aps(tmp_path / "seed0_long" / "frozen_loco", 20.0, 20.0, 20.0, 20.0)
    write_aps(tmp_path / "seed10_long" / "frozen_loco", 22.0, 22.0, 22.0, 22.0)
    write_aps(tmp_path / "seed10_long" / "frozen_random", 7.0, 7.0, 7.0, 7.0)  # a pair of one seed only
    write_aps(tmp_path / "frozen_loco", 99.0, 99.0, 99.0, 99.0)
    begun = tmp_path / "seed7" / "frozen_loco"
    begun.mkdir(parents=True)
    write_lines(begun / "metrics.json", [training_line(19)])  # no AP yet
    (begun / "config.yaml").write_text("DATASETS: {TEST: [demo_val]}")
    header, _, *rows = map(cells, seeds_text(find_runs(tmp_path)).splitlines()[:6])
    assert header == ["run", "seeds", "box AP", "box AP50", "mask AP", "mask AP50"]
    assert statistics.stdev(loco) == pytest.approx(3.606, abs=1e-3)  # not 2.944, that of a whole population
    assert sorted(rows[:3]) == [
        ["seed*/frozen_loco", "0, 1, 2", "13.0 ± 3.6", "26.0 ± 7.2", "14.0 ± 3.6", "–"],
        ["seed*/frozen_random", "0, 1, 2", "10.0 ± 1.0", "10.0 ± 1.0", "10.0 ± 1.0", "30.0 ± 0.0"],
        ["seed*_long/frozen_loco", "0, 10", "21.0 ± 1.4", "21.0 ± 1.4", "21.0 ± 1.4", "21.0 ± 1.4"],
    ]
    # 1, 2, 6: their deviation is not that of the means
    difference = ["seed*/frozen_loco − frozen_random", "0, 1, 2", "+3.0 ± 2.6", "+16.0 ± 6.2", "+4.0 ± 2.6", "–"]
    assert rows[3:] == [difference]
    names = "seed*/frozen_loco and chance (seed*/frozen_random)"
    assert seeds_text(find_runs(tmp_path)).splitlines()[6:] == [
        f"{names} cannot be told apart: +3.0 ± 6.6 box AP (95 % interval, 3 seeds).",
        f"{names} cannot be told apart: +4.0 ± 6.6 mask AP (95 % interval, 3 seeds).",
    ]


def test_what_is_above_its_control(tmp_path):
    for seed in range(3):
        write_aps(tmp_path / f"seed{seed}" / "finetune_a_b", 10.0 + seed, 1, 5.0 + seed, 1)
        write_aps(tmp_path / f"seed{seed}" / "finetune_random", 8.0 + 1.1 * seed, 1, 6.0 + 1.1 * seed, 1)
        write_aps(tmp_path / f"seed{seed}" / "frozen_c", 1, 1, 1, 1)  # without a control
    runs = find_runs(tmp_path)
    interval, names = "(95 % interval, 3 seeds).", ("seed*/finetune_a_b is", "chance (seed*/finetune_random) by")
    found = [f"{names[0]} above {names[1]} 1.9 ± 0.2 box AP {interval}",
             f"{names[0]} below {names[1]} 1.1 ± 0.2 mask AP {interval}"]  # fmt: skip
    assert seeds_verdicts(runs) == found
    page, markdown = render(runs), render_markdown(runs)
    assert all(text in page for text in found)
    assert [line.replace("\\", "") for line in markdown.splitlines() if "95 %" in line] == found


def test_seeds_pair_by_number_and_dataset(tmp_path):
    write_aps(tmp_path / "a" / "seed1" / "frozen_loco", 10, 10, 10, 10)
    write_aps(tmp_path / "a" / "seed2" / "frozen_loco", 30, 30, 30, 30)
    write_aps(tmp_path / "a" / "seed2" / "frozen_random", 31, 31, 31, 31)
    write_aps(tmp_path / "a" / "seed1" / "frozen_random", 12, 12, 12, 12)
    write_aps(tmp_path / "a" / "seed3" / "frozen_random", 99, 99, 99, 99, dataset="other_val")
    write_aps(tmp_path / "b" / "seed3" / "frozen_random", 99, 99, 99, 99)  # of another demo
    folders = [path.parent for path in sorted(tmp_path.rglob("results.json"), reverse=True)]
    for runs in (find_runs(tmp_path), [read_run(folder) for folder in folders]):
        rows = [cells(line) for line in seeds_text(runs).splitlines()[2:5]]
        assert len(rows) == 3 and {row[1].replace(" ", "") for row in rows} == {"1,2"}
        assert rows[-1][2:] == ["-1.5 ± 0.7"] * 4


def test_no_table_of_seeds_without_several(tmp_path, detection, pretraining):
    assert seeds_text(find_runs(tmp_path)) == "" and seeds_text([]) == ""
    for name in ("seed0", "seed0_long", "seedling", "seed1_short", "aseed1"):
        write_aps(tmp_path / "demo" / name / "frozen_loco", 1, 2, 3, 4)
    write_aps(tmp_path / "demo" / "seed3", 1, 2, 3, 4)  # the run itself is named so
    assert seeds_text(find_runs(tmp_path)) == ""

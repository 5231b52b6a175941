"""What the study's report makes of its runs."""

import json
import math
import shutil

import collect
import cv2
import run as study_run
import runner
import study_tables
from made_up_study import ROOT, STAGES, do, fake_call, made_up, tune, write_documents
from rates import MIDDLE, RATES, SHORT
from rows import CROP96, MAIN
from run import Study

from pretrain.files.results import Accuracies, DetectionResults, KnnKey, KnnResults, LinearResults, LinearStage
from pretrain.files.results.detection import without_nan


def test_a_part_that_was_killed_has_no_known_cost(faked):
    run = faked.grid()[0]
    do(faked, [run])
    runner.note(faked.folder / run.name / "cost.jsonl", {"what": "pretrain", "start": 1.7e9})
    (found,) = collect.collect(faked.folder)
    assert found["cpu_seconds"] == {"pretrain": None, "linear_probe": 90, "knn": 90}


def test_each_run_names_its_machine_and_costs_are_of_one(faked, monkeypatch):
    """A study that goes on in the same folder on another machine, and there takes half the time."""
    tune(faked)
    for seed, machine in ((1, "another"), (2, "this one")):
        monkeypatch.setattr(Study, "call", lambda self, *args, m=machine: fake_call(self, *args, machine=m))
        do(faked, faked.runs(MAIN, MIDDLE, [seed]))
    runs = collect.collect(faked.folder)
    assert {run["machine"] for run in runs if run["seed"] == 1} == {"another"}
    assert {run["machine"] for run in runs if run["seed"] != 1} == {"this one"}
    for run in runs:
        run["cpu_seconds"]["pretrain"] /= 1 + (run["machine"] == "another")
    table = study_tables.main_table(study_tables.Results(runs))
    assert [line.rstrip(" |")[-4:] for line in table.splitlines()[2:]] == [" 1.5"] * len(MAIN)


def test_best_stage_is_chosen_on_held_out_images_and_exploded_runs_do_not_count():
    grid = [made_up("gim", 0, [0] * 4, [0] * 4, rate=rate) for rate in (RATES[1], RATES[3])]
    runs = [*grid, made_up("gim", 0, [9, 8, 1, 5], [1, 90, 2, 50]), made_up("gim", 1, [9, 8, 1, 3], [3, 90, 2, 54])]
    exploded = made_up("gim", 2, [0] * 4, [0] * 4)
    del exploded["linear"], exploded["knn"]
    results = study_tables.Results([*runs, {**exploded, "held_out": {"res5": 0.0}}])
    assert "res2 2.0 ± 1.4" in study_tables.main_table(results)
    assert "| 2 of 3 |" in study_tables.stage_tables(results) and "52.0 ± 2.8" in study_tables.stage_tables(results)


def test_late_updates_stand_below_exact_ones():
    runs = [made_up("loco", 0, [0] * 4, [0] * 4, rate=rate) for rate in (RATES[1], RATES[3])]
    runs += [made_up("loco", seed, [9] * 4, [1, 2, 3, 40 + seed]) for seed in range(2)]
    assert study_tables.late_table(study_tables.Results(runs)) == "Not run yet."
    runs += [made_up("loco_late", seed, [9] * 4, [1, 2, 3, 30 + seed]) for seed in range(2)]
    exact, late = study_tables.late_table(study_tables.Results(runs)).splitlines()[2:]
    assert [cell.strip() for cell in exact.split("|")[1:4]] == ["5", "exact", "2"]
    assert "40.5 ± 0.7" in exact and "30.5 ± 0.7" in late and "late" in late


def test_settings_stand_below_the_scale_that_they_change(faked):
    """Each on the seeds that all of its rows have; nothing is shown until one of them was run."""

    def lines():
        shown = study_tables.settings_table(study_tables.Results(collect.collect(faked.folder)))
        header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines())
        assert header[-1] == "LoCo, 1 conv block + 2-layer MLP"
        return [[*line[:3], line[-1]] for line in lines]

    tune(faked)
    do(faked, faked.runs(("gim", "loco"), SHORT, [1]))
    assert study_tables.settings_table(study_tables.Results(collect.collect(faked.folder))) == "Not run yet."
    for phase in ("temperature", "batch"):
        do(faked, [run for run in study_run.PHASES[phase](faked) if run.epochs == SHORT and run.seed == 0])
    # LoCo: 30 + 15 + 3 * 5 + seed + 0.1 * epochs at res5; the made-up kNN has 10 less
    expected = [
        ["5", "as above", "1", "60.5 / 50.5"],
        ["5", "temperature 0.1 instead of 0.2", "1", "60.5 / 50.5"],
        ["5", "64 images a step instead of 256", "1", "60.5 / 50.5"],
    ]
    assert lines() == expected
    do(faked, [run for run in study_run.PHASES["batch"](faked) if run.epochs == SHORT and run.row == "loco"])
    assert lines() == expected
    do(faked, [run for run in study_run.PHASES["batch"](faked) if run.epochs == SHORT])
    expected[2][2:] = ["3", "61.5 ± 1.0 / 51.5 ± 1.0"]
    assert lines() == expected


def test_detection_takes_the_runs_of_the_chosen_learning_rate(faked):
    tune(faked)
    runs = collect.collect(faked.folder)
    for run in runs:
        if run["epochs"] == MIDDLE and run["row"] == "loco":
            run["detection"] = {"nuclei": {"box_ap": 10.0 * RATES.index(run["rate"]), "mask_ap": 1.0}}
    place = RATES.index(faked.rate("loco", MIDDLE))
    assert f"|     1 |   {10 * place}.0 |     1.0 |" in study_tables.detection_table(study_tables.Results(runs))


def test_report_prints_what_the_runs_hold(report, faked, tmp_path):
    tune(faked)
    for phase in ("short", "middle", "table5"):
        do(faked, study_run.PHASES[phase](faked))
    batch = "imagenette96_resnet18_batch"
    do(faked, faked.runs(["loco"], SHORT, [0], scale=batch) + faked.runs(["loco"], SHORT, [0, 1], scale=CROP96))
    root = tmp_path / "root"
    root.mkdir()
    write_documents(root)
    with open(root / "findings.md", "a") as f:
        f.write(f"\n---\n\nIn smaller batches {{linear loco 5 res5 {batch}}}.\n")
    done = report(faked.folder, "--root", root, findings=root / "findings.md")
    assert done.returncode == 0, done.stderr
    text = (root / "docs" / "study.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("| LoCo")]
    # seeds 0, 1, 2: 30 + 15 + 3 * 5 + seed + 0.1 * epochs at res5
    assert "61.5 ± 1.0" in line and "63.0 ± 1.0" in line and "53.0 ± 1.0" in line and "1 conv block" in line
    assert line.rstrip(" |").endswith(" 1.5")  # CPU minutes
    brief, rest = "LoCo has 63.0 ± 1.0, random 21.0 ± 1.0.\n", "\nIn smaller batches 60.5.\n"
    assert brief + rest in text and "Not run yet." in (root / "README.md").read_text()
    assert "over seeds: 3 at 5 epochs (1.0 pooled over rows), 3 at 20 epochs (1.0 pooled over rows);" in text
    assert "over seeds: 2 at 5 epochs (0.7 pooled over rows);" in text  # with larger crops
    (line,) = [x for x in text.splitlines() if x.startswith("| LoCo, upper gradient only")]
    cells = [cell.strip() for cell in line.split("|")[3:-1]]
    assert cells == ["LoCo, 1 conv block + 2-layer MLP", "38.5", "40.0", "res2 38.5", "res2 40.0", "65.3"]
    assert "res5, 5 epochs, 1 seed" in text and "res5, 20 epochs, 1 seed " in text
    line = [x for x in text.splitlines() if x.startswith("| LoCo ") and "| itself" in x][-1]
    assert " 62.0 |" in line  # of seed 0, the only one of all rows
    for name in ("study.png", "study_crops.png"):
        picture = cv2.imread(str(root / "docs" / name))
        assert picture.shape[0] > 400 and picture.std() > 10, name
    # the same again without the runs
    before = {path: (root / path).read_text() for path in ("README.md", "docs/study.md", "docs/study.json")}
    done = report("--record", root / "docs" / "study.json", "--root", root, findings=root / "findings.md")
    assert done.returncode == 0, done.stderr
    assert before == {path: (root / path).read_text() for path in before}
    for place in ("{linear loco 80 res5}", "{linear lco 20 res5}", "{linear loco 21 res5}", "{knn loco 5 res5 small}"):
        (root / "findings.md").write_text(place)
        done = report(faked.folder, "--root", root, findings=root / "findings.md")
        assert done.returncode == 2 and f"{place} is not among the results" in done.stderr
        assert done.stderr.count("\n") == 1


def test_report_adds_a_record_to_the_folder(report, faked, tmp_path):
    """Runs of the folder count, those of the record that the folder lacks, and each names its machine."""
    tune(faked)
    runs = collect.collect(faked.folder)
    here = next(run for run in runs if run["row"] == "loco")
    other = [{**run, "seed": 1, "machine": "a large one", "finished": "2020-01-01"} for run in runs]
    images = json.loads((faked.folder / "study.json").read_text())["data"]
    older = {**here, "linear": dict.fromkeys(STAGES, 1.0), "machine": "a large one"}
    write_documents(tmp_path)
    (tmp_path / "findings.md").write_text("none\n")
    (tmp_path / "record.json").write_text(json.dumps({"data": images, "runs": [*other, older]}))
    done = report(
        faked.folder, "--record", tmp_path / "record.json", "--root", tmp_path, findings=tmp_path / "findings.md"
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "docs" / "study.json").read_text())
    assert len(data["runs"]) == 2 * len(runs) and here in data["runs"]
    assert f"a large one: {len(runs)} runs, 2020-01-01; {here['machine']}: {len(runs)} runs, 2027-" in done.stdout
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("| LoCo")]
    assert line.rstrip(" |").endswith(" 1.5")  # CPU minutes of the newest machine
    (tmp_path / "record.json").write_text(json.dumps({"data": {"imagenette": "0"}, "runs": other}))
    done = report(faked.folder, "--record", tmp_path / "record.json", "--root", tmp_path)
    assert done.returncode == 2 and "has runs on other images of imagenette" in done.stderr
    done = report("--root", tmp_path)
    assert done.returncode == 2 and "nothing to report on" in done.stderr and done.stderr.count("\n") == 1


def test_report_of_an_unfinished_study(report, faked, tmp_path):
    do(faked, faked.grid()[:1])
    write_documents(tmp_path)
    (tmp_path / "findings.md").write_text("none\n")
    done = report(faked.folder, "--root", tmp_path, findings=tmp_path / "findings.md")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "docs" / "study.md").read_text().count("Not run yet.") == 12
    (tmp_path / "docs" / "study.json").write_text("{}")
    done = report("--record", tmp_path / "docs" / "study.json", "--root", tmp_path)
    assert done.returncode == 2 and "no study.json with runs" in done.stderr and done.stderr.count("\n") == 1


def test_report_on_nothing_or_without_a_place_is_one_line(report, tmp_path, faked):
    done = report(tmp_path / "nowhere")
    assert done.returncode == 2 and "no finished run" in done.stderr and done.stderr.count("\n") == 1
    tune(faked)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "study.md").write_text("nothing\n")
    (tmp_path / "findings.md").write_text("none\n")
    done = report(faked.folder, "--root", tmp_path, findings=tmp_path / "findings.md")
    assert not (tmp_path / "docs" / "study.json").exists()  # nothing is written before all can be
    assert done.returncode == 2 and "has no <!-- study" in done.stderr


def test_the_documents_are_what_the_report_makes(report, tmp_path):
    """README and docs/study.md say what docs/study.json holds: nobody has typed in the generated parts."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/study.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = report("--record", ROOT / "docs" / "study.json", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("README.md", "docs/study.md", "docs/study.json"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), name


def test_what_the_tools_have_written_is_collected(faked):
    tune(faked)
    folder = next(path.parents[1] for path in sorted(faked.folder.glob("*/loco/*/knn/results.json")))
    (folder / "nuclei").mkdir()
    tasks = {"bbox": {"AP": 3.5, "APs": math.nan}, "segm": {"AP": 2.5}}
    DetectionResults(results=without_nan(tasks), dataset="nuclei").write(folder / "nuclei" / "results.json")
    LinearResults(linear={"res5": LinearStage(61.0)}).write(folder / "linear_probe" / "results.json")
    KnnResults(knn={"res5": {KnnKey(200, 0.07): Accuracies(50.0)}}).write(folder / "knn" / "results.json")
    (run,) = (run for run in collect.collect(faked.folder) if "detection" in run)
    assert run["detection"] == {"nuclei": {"box_ap": 3.5, "mask_ap": 2.5}}
    assert (run["linear"], run["held_out"], run["knn"]) == ({"res5": 61.0}, {"res5": 0.0}, {"res5": 50.0})

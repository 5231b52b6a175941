"""Reading a run folder, torn files included."""

import json

import pytest

from loco_det.report.runs import pretraining_table
from loco_det.runs.folder import read_run


def test_reads_a_pretraining_run_with_a_torn_line(pretraining):
    run = read_run(pretraining)
    assert run.kind == "pretraining" and run.iterations == 100 and run.seconds == pytest.approx(200)
    assert run.series("loss_res4") == ([20, 40, 60, 80, 100], pytest.approx([4.62, 4.22, 3.82, 3.42, 3.02]))
    assert run.key("MODEL.ENCODER") == "resnet18" and run.key("MODEL.NOT.THERE", 3) == 3
    assert [p.name for p in run.pictures] == ["views.png"]


def test_reads_a_detection_run_with_an_evaluation_out_of_turn(detection):
    run = read_run(detection[0])
    assert run.kind == "detection" and run.seconds == 123.4
    assert run.series("total_loss")[0] == [20, 40, 300]  # the AP line of iteration 29 did not drop line 39
    assert run.series("bbox/AP") == ([30, 301], [1.0, 12.34])


def test_resume_drops_what_was_logged_beyond_the_checkpoint(tmp_path, training_line, write_lines):
    lines = [training_line(19), training_line(39), training_line(59, total_loss=9.0)]
    lines += [training_line(29, total_loss=1.0), training_line(49)]
    write_lines(tmp_path / "metrics.json", lines)
    assert read_run(tmp_path).series("total_loss") == ([20, 30, 50], [2.0, 1.0, 2.0])


def test_line_torn_in_the_middle_by_a_kill_and_a_resume(tmp_path, training_line, write_lines):
    good = json.dumps(training_line(39)) + "\n"
    write_lines(tmp_path / "metrics.json", [training_line(19)], tail='{"iteration": 3' + good + good + "[3]\n\n")
    assert read_run(tmp_path).series("lr")[0] == [20, 40]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"results": 3}'])
def test_damaged_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="results.json is damaged"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("SOLVER.MAX_ITER", "many"), ("MODEL.UNITS", [[3]]), ("DATASETS.TEST", 5), ("MODEL.WEIGHTS", "a\0b"),
     ("MODEL.DECODER", {"CONV_BLOCKS": "1"}), ("MODEL.DECODER", {"CONV_BLOCKS": 1, "MLP_LAYERS": 2**50})],
)  # fmt: skip
def test_a_value_of_another_type_in_the_config_counts_as_unknown(detection, key, value):
    config = {}
    section, name = key.split(".")
    config[section] = {name: value}
    (detection[0] / "config.yaml").write_text(json.dumps(config))
    run = read_run(detection[0])
    assert run.key(key) is None and run.key(key, 3) == 3 and run.state == "done"


@pytest.mark.parametrize("change", [{"tasks": {}}, {"tasks": {"bbox": 3}}, {"classes": [["a"]]}, {"dataset": []}])
def test_an_analysis_of_other_types_is_none(detection, change):
    curves = {"recall": [0.5], "0.50": [None], "0.50:0.95": [1.0]}
    task = {"per_class": {"a": {"objects": 1, "AP": None}}, "curves": curves}
    good = {"dataset": "a", "classes": ["a"], "tasks": {"bbox": task}, "confusion": {}}
    for content, known in ((good, good), (good | change, {})):
        (detection[0] / "analysis.json").write_text(json.dumps(content))
        assert read_run(detection[0]).analysis == known
    curves["recall"] = [0.5, 0.6]
    (detection[0] / "analysis.json").write_text(json.dumps(good))
    assert read_run(detection[0]).analysis == {}


def test_the_state_of_pretraining(pretraining):
    plan = "resnet18, units [['res2']], 64 images, {} iterations, 1 processes; images per step: 64, per process: 64\n"
    run = read_run(pretraining)
    assert (run.state, run.planned, run.iterations) == ("done", None, 100)  # as far as is known
    (pretraining / "log.txt").write_text(plan.format(900) + "another line\n" + plan.format(200))
    run = read_run(pretraining)
    assert (run.state, run.planned) == ("not finished", 200)
    (pretraining / "log.txt").write_text(plan.format(100))
    assert read_run(pretraining).state == "done"


def test_the_iterations_of_pretraining_that_was_stopped_before_its_first_line(pretraining):
    (pretraining / "metrics.json").write_text("")
    for name in ("model_0000009.pth", "model_0000029.pth"):
        (pretraining / name).touch()
    (pretraining / "last_checkpoint").write_text("model_0000029.pth")
    run = read_run(pretraining)
    assert (run.state, run.iterations) == ("not finished", 30)
    (pretraining / "log.txt").write_text("resnet18, 64 images, 100 iterations, 1 processes; images per step: 64\n")
    row = pretraining_table([read_run(pretraining)]).markdown().splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")][1:4] == ["loco", "not finished", "30 of 100"]

"""Reading a run folder, torn files included."""

import json

import pytest

from loco_det.run_folder import read_run


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

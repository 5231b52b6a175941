"""What is drawn: the lines of the figures."""

import io
import math

import numpy as np
import pytest
import yaml
from PIL import Image

from loco_det.report import curves
from loco_det.runs.folder import read_run


@pytest.fixture
def figures(monkeypatch):
    """The functions return their matplotlib figure instead of its PNG."""
    monkeypatch.setattr(curves, "png", lambda figure: figure)


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_pretraining_curves(pretraining, figures):
    units, total, lr = curves.pretraining_curves(read_run(pretraining)).axes
    drawn = lines(units)
    assert set(drawn) == {"unit up to res3", "unit up to res4", "chance, ln(2·batch − 1)"}
    assert drawn["unit up to res4"][0] == [20, pytest.approx(4.62)] and len(drawn["unit up to res3"]) == 5
    assert drawn["chance, ln(2·batch − 1)"][0][1] == pytest.approx(math.log(127))
    assert lines(total)["total"][-1] == [100, pytest.approx(7.03)]
    assert lines(lr) == {"lr": []}  # not logged in this run


def test_chance_is_that_of_info_nce_and_of_no_other_loss(pretraining, figures):
    config = yaml.safe_load((pretraining / "config.yaml").read_text())
    for name, label in (("info_nce", "chance, ln(2·batch − 1)"), ("barlow_twins", None)):
        config["LOSS"] = {"NAME": name, "SCALE": 0.5}
        (pretraining / "config.yaml").write_text(yaml.safe_dump(config))
        drawn = lines(curves.pretraining_curves(read_run(pretraining)).axes[0])
        assert drawn.keys() - {"unit up to res3", "unit up to res4"} == ({label} if label else set())
        assert label is None or drawn[label][0][1] == pytest.approx(0.5 * math.log(127))


def test_sum_of_one_unit_is_not_drawn_twice(tmp_path, training_line, write_lines, figures):
    write_lines(tmp_path / "metrics.json", [{"iteration": 19, "data_time": 0, "loss_res5": 3.0, "total_loss": 3.0}])
    assert len(curves.pretraining_curves(read_run(tmp_path)).axes) == 2


def test_detection_curves_show_ap_when_there_are_several(detection, figures):
    losses, ap = curves.detection_curves(read_run(detection[0])).axes
    assert set(lines(losses)) == {"total loss", "loss mask"}
    assert lines(ap)["box AP"] == [[30, 1.0], [301, 12.34]]
    assert len(curves.detection_curves(read_run(detection[1])).axes) == 1


def test_axes_show_markers_whole_whole_iterations_and_nothing_below_zero(tmp_path, training_line, write_lines, figures):
    folder = tmp_path / "run"
    folder.mkdir()
    aps = [{"iteration": i, "bbox/AP": 0.0, "segm/AP": 0.0} for i in (20, 21)]
    write_lines(folder / "metrics.json", [training_line(19), *aps, training_line(20)])
    losses, ap = curves.detection_curves(read_run(folder)).axes
    assert losses.get_ylim() == (0, pytest.approx(2.12)) and ap.get_ylim() == (0, 1)
    for axes in (losses, ap, *curves.joint_curves([read_run(folder)] * 2, "demo").axes):
        assert all(tick == int(tick) for tick in axes.get_xticks())


def test_joint_curves(detection, figures):
    figure = curves.joint_curves([read_run(folder) for folder in detection], "demo_val")
    for axes, value in zip(figure.axes, (2.0, 0.7), strict=True):
        drawn = lines(axes)
        assert set(drawn) == {"frozen", "finetune"} and len({line.get_color() for line in axes.lines}) == 2
        assert drawn["frozen"] == [[20, value], [40, value], [300, value]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["frozen", "finetune"]


def test_joint_curves_of_detectors_without_masks(detection, figures):
    """A light head has boxes only: one panel, and no empty one."""
    for folder in detection:
        text = (folder / "metrics.json").read_text().replace("loss_mask", "loss_centerness")
        (folder / "metrics.json").write_text(text)
    (axes,) = curves.joint_curves([read_run(folder) for folder in detection], "demo_val").axes
    assert axes.get_title(loc="left").startswith("Total loss") and set(lines(axes)) == {"frozen", "finetune"}


def test_ap_over_iterations_of_several_runs(detection, figures):
    box, mask = curves.ap_curves([read_run(folder) for folder in detection], "demo_val").axes
    assert lines(box)["frozen"] == [[30, 1.0], [301, 12.34]] and lines(box)["finetune"] == []
    assert lines(mask)["frozen"][-1] == [301, 10.06] and box.get_ylabel() == "AP (%)"


def test_precision_by_recall_of_several_runs(detection, figures):
    runs = [read_run(folder) for folder in detection]
    for run, task in zip(runs, ("bbox", "segm"), strict=True):
        curve = {"recall": [0.0, 0.5, 1.0], "0.50": [90.0, 50.0, None], "0.50:0.95": [60.0, 20.0, 0.0]}
        run.analysis = {"tasks": {"bbox": {"curves": curve}} | {task: {"curves": curve}}}
    at_half, mean = curves.pr_curves(runs, "demo_val").axes
    assert set(lines(mean)) == {"frozen (box)", "finetune (mask)"}
    assert lines(mean)["frozen (box)"] == [[0.0, 60.0], [0.5, 20.0], [1.0, 0.0]]
    assert lines(at_half)["finetune (mask)"][:2] == [[0.0, 90.0], [0.5, 50.0]]
    assert "IoU 0.50, demo_val" in at_half.get_title(loc="left")


def test_png(detection):
    image = Image.open(io.BytesIO(curves.detection_curves(read_run(detection[0]))))
    assert image.format == "PNG" and image.width > 1000 and np.asarray(image).std() > 5

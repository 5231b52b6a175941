"""The report of made-up runs: what is read, the table, the curves, the page."""

import base64
import io
import json
import math
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from loco_det import report
from loco_det.report import find_runs, read_run, table_text, write_report


def training_line(iteration, **more):
    return {"iteration": iteration, "total_loss": 2.0, "loss_mask": 0.7, "data_time": 0, "lr": 0.01, "time": 0.5} | more


def write_lines(path, lines, tail=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


@pytest.fixture
def pretraining(tmp_path):
    folder = tmp_path / "demo" / "loco"
    folder.mkdir(parents=True)
    decoder = {"CONV_BLOCKS": 1, "DOWNSAMPLE": True, "HIDDEN_DIM": 512, "OUT_DIM": 128}
    model = {"ENCODER": "resnet18", "UNITS": [["res2", "res3"], ["res3", "res4"]], "DECODER": decoder}
    (folder / "config.yaml").write_text(yaml.safe_dump({"MODEL": model, "SOLVER": {"IMS_PER_BATCH": 64}}))
    lines = [
        {"iteration": i, "loss_res3": 5 - i / 100, "loss_res4": 5 - i / 50, "total_loss": 10 - 3 * i / 100}
        for i in range(19, 100, 20)
    ]
    lines = [line | {"data_time": 0, "time": 2} for line in lines]
    write_lines(folder / "metrics.json", lines, tail='{"iteration": 119, "loss_re')
    Image.new("RGB", (60, 40), "red").save(folder / "views.png")
    (folder / "command.txt").write_text("python tools/pretrain.py A.B '<x>'\n")
    return folder


@pytest.fixture
def detection(tmp_path, pretraining):
    """Frozen LoCo features, evaluated twice, and a fine-tuned run that was interrupted."""
    done, interrupted = tmp_path / "demo" / "frozen", tmp_path / "demo" / "finetune"
    config = {
        "MODEL": {"META_ARCHITECTURE": "GeneralizedRCNN", "WEIGHTS": "", "RESNETS": {"DEPTH": 18}},
        "SOLVER": {"MAX_ITER": 300, "IMS_PER_BATCH": 2},
        "DATASETS": {"TEST": ["demo_val"]},
    }
    for folder in (done, interrupted):
        (folder / "pictures").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        write_lines(folder / "metrics.json", [training_line(i) for i in range(19, 120, 20)])
    write_lines(
        done / "metrics.json",
        [training_line(19), training_line(39), {"iteration": 29, "bbox/AP": 1.0, "segm/AP": math.nan}]
        + [training_line(299), {"iteration": 300, "bbox/AP": 12.34, "segm/AP": 10.06}],
    )
    box = {"AP": 12.34, "AP50": 30.06, "AP75": 7, "APs": None, "APm": 10.0, "APl": 20.0, "AP-square": 9.0}
    results = {
        "kind": "detection", "dataset": "demo_val", "iteration": 300, "weights": str(pretraining / "backbone.pkl"),
        "frozen": True, "backbone": "ResNet-18", "seconds": 123.4,
        "results": {"bbox": box, "segm": box | {"AP": 10.06}},
    }  # fmt: skip
    (done / "results.json").write_text(json.dumps(results))
    Image.new("RGB", (400, 200), "blue").save(done / "pictures" / "000_a<b.png")
    return done, interrupted


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def images(self):
        """Alternative text -> the picture."""
        found = [attrs for tag, attrs in self.tags if tag == "img"]
        assert all(re.match(r"data:image/(png|jpeg);base64,", a["src"]) and a["alt"] for a in found)
        return {a["alt"]: Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1]))) for a in found}


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


def test_resume_drops_what_was_logged_beyond_the_checkpoint(tmp_path):
    lines = [training_line(19), training_line(39), training_line(59, total_loss=9.0)]
    lines += [training_line(29, total_loss=1.0), training_line(49)]
    write_lines(tmp_path / "metrics.json", lines)
    assert read_run(tmp_path).series("total_loss") == ([20, 30, 50], [2.0, 1.0, 2.0])


def test_line_torn_in_the_middle_by_a_kill_and_a_resume(tmp_path):
    good = json.dumps(training_line(39)) + "\n"
    write_lines(tmp_path / "metrics.json", [training_line(19)], tail='{"iteration": 3' + good + good + "[3]\n\n")
    assert read_run(tmp_path).series("lr")[0] == [20, 40]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"results": 3}'])
def test_damaged_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="results.json is damaged"):
        read_run(tmp_path)


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


def test_same_folder_names_are_told_apart(tmp_path):
    for seed in ("seed1/frozen", "seed2/frozen"):
        (tmp_path / seed).mkdir(parents=True)
        write_lines(tmp_path / seed / "metrics.json", [training_line(19)])
    assert [run.name for run in find_runs(tmp_path)] == ["seed1/frozen", "seed2/frozen"]


def test_table(tmp_path, detection):
    header, rule, interrupted, done = table_text(find_runs(tmp_path)).splitlines()
    assert len({len(line) for line in (header, rule, interrupted, done)}) == 1  # aligned
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, done, interrupted)]
    row = dict(zip(cells[0], cells[1], strict=True))
    assert row == {
        "run": "frozen", "backbone": "ResNet-18", "weights": "loco/backbone.pkl",
        "decoder": "1 conv block, downsampling, MLP 512-128", "trained": "frozen", "dataset": "demo_val",
        "iterations": "300", "time": "2 min 03 s",
        "box AP": "12.3", "box AP50": "30.1", "mask AP": "10.1", "mask AP50": "30.1",
    }  # fmt: skip
    row = dict(zip(cells[0], cells[2], strict=True))
    assert (row["iterations"], row["time"], row["weights"]) == ("120 of 300", "1 min 00 s", "random")
    assert (row["trained"], row["dataset"], row["mask AP"]) == ("fine-tuned", "demo_val", "–")


def test_table_of_several_test_sets_evaluated_only(tmp_path):
    aps = {"a_val": {"bbox": {"AP": 1}}, "b_val": {"bbox": {"AP": 2}, "segm": {"AP": None}}}
    results = {"dataset": "a_val, b_val", "iteration": None, "seconds": None, "weights": "x.pth", "results": aps}
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_lines(tmp_path / "metrics.json", [training_line(19)])  # tells what results.json leaves open
    _, _, *rows = table_text(find_runs(tmp_path)).splitlines()
    assert all("10 s" in row and " 20 " in row for row in rows)
    assert ["a_val" in rows[0], " 1.0 " in rows[0], "b_val" in rows[1], " 2.0 " in rows[1]] == [True] * 4
    assert len(rows) == 2


def test_random_control_has_no_decoder_and_no_curve(tmp_path, pretraining):
    config = yaml.safe_load((pretraining / "config.yaml").read_text())
    config["MODEL"]["UNITS"] = []
    (pretraining / "config.yaml").write_text(yaml.safe_dump(config))
    write_lines(pretraining / "metrics.json", [{"iteration": 19, "data_time": 0.1, "time": 1.0}])
    page = Page(write_report(pretraining, tmp_path / "report.html"))
    assert "none: random" in page.text and "MLP" not in page.text and len(page.images()) == 1
    assert read_run(pretraining).iterations == 20


def test_table_without_detection_runs(pretraining):
    assert table_text(find_runs(pretraining)) == "no detection runs"


def test_page(tmp_path, detection, pretraining):
    path = write_report(tmp_path, tmp_path / "out" / "report.html")
    assert path == tmp_path / "out" / "report.html" and os.listdir(path.parent) == ["report.html"]
    page = Page(path)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe"} & set(tags)  # nothing that a disk or a content policy would block
    assert "http" not in path.read_text().replace("http-equiv", "")
    assert tags.count("details") == 3
    for text in ("A.B '<x>'", "res2+res3, res3+res4", "res4 4.62 → 3.02", "– / 10.0 / 20.0", "META_ARCH", "torch"):
        assert text in page.text, text
    images = page.images()
    assert len(images) == 6  # joint curves, three runs' curves, views, one detection picture
    picture = next(image for alt, image in images.items() if "000_a<b" in alt)
    assert picture.size == (400, 200)
    curves = [image for alt, image in images.items() if "by iteration" in alt]
    assert len(curves) == 4 and all(image.width > 1000 and np.asarray(image).std() > 5 for image in curves)


def test_names_cannot_inject_html(tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    write_lines(folder / "metrics.json", [training_line(19)])
    (folder / "config.yaml").write_text("A: '</pre><script>alert(1)</script>'")
    page = Page(write_report(folder, tmp_path / "report.html"))
    assert "script" not in [tag for tag, _ in page.tags]
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.tags if tag == "img")
    assert page.text.count("<img src=x onerror=alert(1)>") >= 3


def test_page_stays_small(tmp_path, detection, monkeypatch):
    rng = np.random.default_rng(0)
    folder = detection[0] / "pictures"
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (300, 900, 3), dtype=np.uint8)).save(folder / f"noise{i}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n")
    monkeypatch.setattr(report, "PICTURE_BYTES", 600_000)
    page = Page(write_report(tmp_path, tmp_path / "report.html"))
    shown = {alt: image.size for alt, image in page.images().items() if "noise" in alt}
    assert len(shown) == 4 and set(shown.values()) == {(450, 150)}
    assert "1 more pictures" in page.text  # the torn one
    monkeypatch.setattr(report, "PICTURE_BYTES", 250_000)
    page = Page(write_report(tmp_path, tmp_path / "report.html"))
    assert 0 < sum("noise" in alt for alt in page.images()) < 4


def test_run_that_has_only_begun(tmp_path):
    (tmp_path / "metrics.json").touch()
    (tmp_path / "config.yaml").write_text("MODEL: {META_ARCHITECTURE: X, UNITS: [")  # damaged: shown as it is
    page = Page(write_report(tmp_path, tmp_path / "report.html"))
    assert "No results.json" in page.text and not page.images()


def test_failed_write_keeps_the_old_page(tmp_path, pretraining, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    before = sorted(tmp_path.iterdir())

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(pretraining, path)
    assert path.read_text() == "old" and sorted(tmp_path.iterdir()) == before

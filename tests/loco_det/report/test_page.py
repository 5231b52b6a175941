"""The page about made-up runs."""

import base64
import io
import json
import os
import re
import resource
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from loco_det.report import page as report
from loco_det.report import pictures
from loco_det.report.page import write_report
from loco_det.report.runs import table_text
from loco_det.runs.find import find_runs
from loco_det.runs.folder import is_finished, read_run


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


def test_random_control_has_no_decoder_and_no_curve(tmp_path, pretraining, write_lines):
    config = yaml.safe_load((pretraining / "config.yaml").read_text())
    config["MODEL"]["UNITS"] = []
    (pretraining / "config.yaml").write_text(yaml.safe_dump(config))
    write_lines(pretraining / "metrics.json", [{"iteration": 19, "data_time": 0.1, "time": 1.0}])
    page = Page(write_report(find_runs(pretraining), tmp_path / "report.html"))
    assert "none: random" in page.text and "MLP" not in page.text and len(page.images()) == 1
    assert read_run(pretraining).iterations == 20


def test_page(tmp_path, detection, pretraining):
    path = write_report(find_runs(tmp_path), tmp_path / "out" / "report.html")
    assert path == tmp_path / "out" / "report.html" and os.listdir(path.parent) == ["report.html"]
    page = Page(path)
    tags = [tag for tag, _ in page.tags]
    assert not {"link", "iframe"} & set(tags) and not any(
        attrs.get("src") for tag, attrs in page.tags if tag == "script"
    )
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


def test_names_cannot_inject_html(tmp_path, training_line, write_lines):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    write_lines(folder / "metrics.json", [training_line(19)])
    text = "A: '</pre><script>alert(1)</script>'\nMODEL: {ENCODER: '<img src=y onerror=alert(2)>'}"
    (folder / "config.yaml").write_text(text)
    page = Page(write_report(find_runs(folder), tmp_path / "report.html"))
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.tags if tag == "img")
    assert page.text.count("<img src=x onerror=alert(1)>") >= 3


def test_page_stays_small(tmp_path, detection, monkeypatch):
    rng = np.random.default_rng(0)
    folder = detection[0] / "pictures"
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (300, 900, 3), dtype=np.uint8)).save(folder / f"noise{i}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n")
    monkeypatch.setattr(pictures, "PICTURE_BYTES", 600_000)
    page = Page(write_report(find_runs(tmp_path), tmp_path / "report.html"))
    shown = {alt: image.size for alt, image in page.images().items() if "noise" in alt}
    assert len(shown) == 4 and set(shown.values()) == {(450, 150)}
    assert "1 more pictures" in page.text  # the torn one
    monkeypatch.setattr(pictures, "PICTURE_BYTES", 250_000)
    page = Page(write_report(find_runs(tmp_path), tmp_path / "report.html"))
    assert 0 < sum("noise" in alt for alt in page.images()) < 4


def test_run_that_has_only_begun(tmp_path):
    (tmp_path / "metrics.json").touch()
    (tmp_path / "config.yaml").write_text("MODEL: {META_ARCHITECTURE: X, UNITS: [")  # damaged: shown as it is
    page = Page(write_report(find_runs(tmp_path), tmp_path / "report.html"))
    assert "No results.json" in page.text and not page.images()


def test_failed_write_keeps_the_old_page(tmp_path, pretraining, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    before = sorted(tmp_path.iterdir())

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(find_runs(pretraining), path)
    assert path.read_text() == "old" and sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_told_with_the_pages_name(tmp_path, pretraining, monkeypatch):
    path = tmp_path / "report.html"
    monkeypatch.setattr(report, "render", lambda runs: "x" * 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # bytes a file may have
        with pytest.raises(OSError, match="report.html"):
            write_report(find_runs(pretraining), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*report*"))


def test_table_over_seeds_only_if_there_are_several(tmp_path):
    for seed, ap in enumerate((10.0, 12.0)):
        folder = tmp_path / f"seed{seed}" / "frozen_loco"
        folder.mkdir(parents=True)
        results = {"bbox": {"AP": ap, "AP50": ap}, "segm": {"AP": ap, "AP50": ap}}
        same = {"key": "0" * 12, "settings": {}}
        content = {"dataset": "demo_val", "results": results, "comparability": same}
        (folder / "results.json").write_text(json.dumps(content))
    page = Page(write_report(find_runs(tmp_path), tmp_path / "report.html"))
    assert "Over seeds" in page.text and "seed*/frozen_loco" in page.text and page.text.count("11.0 ± 1.4") == 4
    page = Page(write_report(find_runs(tmp_path / "seed0"), tmp_path / "report.html"))
    assert "Over seeds" not in page.text


def test_missing_and_damaged_runs_are_shown_beside_others(tmp_path, detection):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.json").write_text("{")
    runs = find_runs([tmp_path / "gone", tmp_path / "damaged", *detection])
    assert [run.state for run in runs] == ["missing", "damaged", "done", "not finished"]
    page = Page(write_report(runs, tmp_path / "report.html", tmp_path / "report.md"))
    for text in ("gone: missing.", "damaged: damaged.", "not finished"):
        assert text in page.text, text
    lines = (tmp_path / "report.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert ["missing" in line for line in table[1:5]] == [True, False, False, False] and " 12.3 " in table[3]


def with_analysis(folder, name="demo_val"):
    """Give a run an analysis of two classes, the second without objects."""
    ap = {"objects": 3, **dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR"), 12.5)}
    curves = {"recall": [0.0, 0.5, 1.0], **dict.fromkeys(("0.50", "0.75", "0.50:0.95"), [80.0, 40.0, 0.0])}
    sizes = dict.fromkeys(("all", "small", "medium", "large"), {"AP": 12.5, "AR": 30.0})
    per_class = {"tram|<b>": ap, "ox": dict.fromkeys(ap, None) | {"objects": 0}}
    task = {"sizes": sizes, "per_class": per_class, "curves": curves}
    content = {"dataset": name, "classes": list(per_class), "tasks": {"segm": task}, "confusion": {}}
    (folder / "analysis.json").write_text(json.dumps(content))
    Image.new("RGB", (1200, 900), "green").save(folder / "analysis.png")


def test_analyses_are_compared(tmp_path, detection):
    results = json.loads((detection[0] / "results.json").read_text())
    for folder in detection:
        with_analysis(folder)
        same = {"comparability": {"key": "0" * 12, "settings": {}}}
        (folder / "results.json").write_text(json.dumps(results | same))
    page = Page(write_report(find_runs(detection), tmp_path / "report.html", tmp_path / "report.md"))
    images = page.images()
    assert "Precision by recall on demo_val of frozen, finetune" in images
    assert [image.size for alt, image in images.items() if alt.startswith("Analysis of")] == [(1200, 900)] * 2
    assert "AP by class, demo_val" in page.text and "tram|<b>" in page.text and "finetune: mask AP" in page.text
    text = (tmp_path / "report.md").read_text()
    row = next(line for line in text.splitlines() if "tram" in line)
    assert row.startswith("| tram\\|&lt;b&gt; |") and [cell.strip() for cell in row.split(" | ")][1:] == [
        "3",
        "12.5",
        "12.5 |",
    ]
    other = {"comparability": {"key": "1" * 12, "settings": {"SOLVER.MAX_ITER": 700}}}
    (detection[1] / "results.json").write_text(json.dumps(results | other))
    page = Page(write_report(find_runs(detection), tmp_path / "report.html", tmp_path / "report.md"))
    curves = [f"Precision by recall on demo_val of {name}" for name in ("frozen", "finetune")]
    assert [alt for alt in page.images() if alt.startswith("Precision")] == curves
    assert [alt for alt in page.images() if alt.startswith("Losses by")] == [
        "Losses by iteration on demo_val of frozen, finetune"
    ]
    note = "Runs of groups 1 and 2 cannot be compared with each other: iterations – / 700."
    assert note in page.text and note in (tmp_path / "report.md").read_text().replace("\\", "")
    assert page.text.count("AP by class, demo_val") == 2
    (detection[0] / "analysis.json").write_text("[]")  # torn or foreign: the page does without
    (detection[0] / "analysis.png").write_bytes(b"")
    page = Page(write_report(find_runs(detection), tmp_path / "report.html"))
    assert sum(alt.startswith("Analysis of") for alt in page.images()) == 1


def test_a_run_of_a_later_version_is_shown_as_such(tmp_path, detection):
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "results.json").write_text(json.dumps({"kind": "detection", "version": 99, "results": 3}))
    runs = find_runs([tmp_path / "later", detection[0]])
    assert (
        runs[0].state == "of a later version"
        and "later: of a later version." in Page(write_report(runs, tmp_path / "report.html")).text
    )
    with pytest.raises(ValueError, match="version 99"):
        is_finished(tmp_path / "later")  # or whoever asks would train it anew


def test_numbers_sort_by_value(tmp_path, detection):
    page = Page(write_report(find_runs(detection), tmp_path / "report.html"))
    values = [attrs["data-value"] for tag, attrs in page.tags if tag == "td" and "data-value" in attrs]
    assert {"12.34", "123.4", "120", "60"} <= set(
        values
    )  # AP, seconds and iterations behind "2 min 03 s", "120 of 300"
    assert all(np.isfinite(float(value)) for value in values)


def test_readouts(tmp_path, readouts):
    page = Page(write_report(find_runs(readouts), tmp_path / "report.html", tmp_path / "report.md"))
    texts = (
        "Readouts",
        "50.50",
        "learning rate",
        "all diverged",
        "loco/model_final.pth",
        "nette/train (leave-one-out)",
    )
    assert all(text in page.text for text in texts) and "damaged" not in page.text and "Detection" not in page.text
    assert [picture.size for picture in page.images().values()] == [(1170, 900)]
    assert (
        "  50.50 |" in (tmp_path / "report.md").read_text()
        and "## Detection" not in (tmp_path / "report.md").read_text()
    )


def test_no_runs(tmp_path):
    with pytest.raises(ValueError, match="no runs"):
        write_report([], tmp_path / "report.html")


HOSTILE = "x\n| y \x1b[31m<script>alert(1)<script> `a` [b](javascript:c) \u202e$a_{$ " + "n" * 100


def test_hostile_names_are_data_in_page_markdown_and_tables(tmp_path, training_line, write_lines):
    for name in (HOSTILE, "_$b_{$", os.fsdecode(b"\xff")):  # the last is no UTF-8
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        write_lines(folder / "metrics.json", [training_line(i) for i in (19, 39)])
        dataset = {"DATASETS": {"TEST": [HOSTILE]}, "SOLVER": {"MAX_ITER": 9}}
        (folder / "config.yaml").write_text(yaml.safe_dump({**dataset, "META_ARCHITECTURE": "\x9b"}))
        with_analysis(folder)
        analysis = json.loads((folder / "analysis.json").read_text())
        part = analysis["tasks"]["segm"]["per_class"]
        part[HOSTILE] = part[analysis["classes"][0]]
        (folder / "analysis.json").write_text(
            json.dumps({**analysis, "classes": [HOSTILE, *analysis["classes"][1:]], "dataset": HOSTILE})
        )
    runs = find_runs(tmp_path / "runs")
    page = write_report(runs, tmp_path / "report.html", tmp_path / "report.md")
    assert [tag for tag, _ in Page(page).tags].count("script") == 1  # the page's own
    markdown = (tmp_path / "report.md").read_text()
    assert "<script>" not in markdown and "](javascript" not in markdown.replace("\\](javascript", "")
    assert not any(line.startswith("| y") for line in markdown.splitlines())
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):  # each row has as many cells as its head
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}) == 1
    assert max(map(len, table_text(runs).splitlines())) < 600
    for text in (page.read_text(), markdown, table_text(runs)):
        assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a & <b> \"c\" 'd'", "a & <b> \"c\" 'd'"), ("&lt;&amp;", "&lt;&amp;"), ("x\ny\x1b\u202e", "x\\ny\\x1b\\u202e"),
     ("\udcff", "\\udcff"), ("{{ title }}", "{{ title }}"), ("</title>", "</title>")],
)  # fmt: skip
def test_names_are_escaped_once(tmp_path, training_line, write_lines, text, shown):
    """In the title, in tables, captions, attributes and sentences."""
    write_lines(tmp_path / "metrics.json", [training_line(i) for i in (19, 39)])
    run = read_run(tmp_path)
    run.name, run.command, run.config_text = text, f"{text}\t2", f"1\n{text}"
    run.kind, run.config = "detection", {"DATASETS": {"TEST": [text]}, "MODEL": {"WEIGHTS": text}}
    (tmp_path / "page.html").write_text(report.render([run]), encoding="utf-8")
    page = Page(tmp_path / "page.html")
    assert f"Report: {shown}\n" in page.text and page.text.count(shown) >= 6
    ends = "the total loss ends at 2 at iteration 40."
    assert list(page.images()) == [f"Losses of {shown} by iteration; {ends}"]
    kept = shown.replace("\\n", "\n")  # in the command and the config lines stay lines
    assert f"{kept}\t2" in page.text and f"1\n{kept}" in page.text


def test_a_run_with_problems_is_not_done(tmp_path, detection):
    results = json.loads((detection[0] / "results.json").read_text())
    (detection[0] / "results.json").write_text(json.dumps({**results, "problems": ["pictures: <b>.png: truncated"]}))
    runs = find_runs(detection[0])
    assert runs[0].state == "problems" and " problems " in table_text(runs)
    page = Page(write_report(runs, tmp_path / "report.html"))
    assert "Not all of it has succeeded: pictures: <b>.png: truncated." in page.text

"""The page about made-up runs."""

import base64
import io
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from loco_det import report
from loco_det.report import write_report
from loco_det.run_folder import read_run
from loco_det.runs import find_runs


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


def test_names_cannot_inject_html(tmp_path, training_line, write_lines):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    write_lines(folder / "metrics.json", [training_line(19)])
    (folder / "config.yaml").write_text("A: '</pre><script>alert(1)</script>'")
    page = Page(write_report(find_runs(folder), tmp_path / "report.html"))
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
    page = Page(write_report(find_runs(tmp_path), tmp_path / "report.html"))
    shown = {alt: image.size for alt, image in page.images().items() if "noise" in alt}
    assert len(shown) == 4 and set(shown.values()) == {(450, 150)}
    assert "1 more pictures" in page.text  # the torn one
    monkeypatch.setattr(report, "PICTURE_BYTES", 250_000)
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

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(find_runs(pretraining), path)
    assert path.read_text() == "old" and sorted(tmp_path.iterdir()) == before


def test_table_over_seeds_only_if_there_are_several(tmp_path):
    for seed, ap in enumerate((10.0, 12.0)):
        folder = tmp_path / f"seed{seed}" / "frozen_loco"
        folder.mkdir(parents=True)
        results = {"bbox": {"AP": ap, "AP50": ap}, "segm": {"AP": ap, "AP50": ap}}
        (folder / "results.json").write_text(json.dumps({"dataset": "demo_val", "results": results}))
    page = Page(write_report(find_runs(tmp_path), tmp_path / "report.html"))
    assert "Over seeds" in page.text and "seed*/frozen_loco" in page.text and page.text.count("11.0 ± 1.4") == 4
    page = Page(write_report(find_runs(tmp_path / "seed0"), tmp_path / "report.html"))
    assert "Over seeds" not in page.text


def test_no_runs(tmp_path):
    with pytest.raises(ValueError, match="no runs"):
        write_report([], tmp_path / "report.html")

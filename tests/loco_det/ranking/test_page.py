"""The page of a made-up evaluation, its CSV and its JSON."""

import base64
import csv
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_evaluation import RATES, write_run, write_settings
from PIL import Image

from loco_det.ranking.comparisons import rank
from loco_det.ranking.evaluation import read_evaluation
from loco_det.ranking.files import COLUMNS
from loco_det.ranking.page import LIGHT_NOTE, ranking_text, write_ranking
from loco_det.ranking.sampling import ImageError


class Page(HTMLParser):
    """Every tag with its attributes, the text, and the tables as lists of rows of cells."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.tables, self.in_cell = [], "", [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data.strip()

    def table(self, *heads):
        """The first table whose head begins so, as dicts."""
        for head, *rows in self.tables:
            if head[: len(heads)] == list(heads):
                return [dict(zip(head, row, strict=True)) for row in rows]
        raise AssertionError(f"no table {heads}: {[table[0] for table in self.tables]}")

    def all(self, tag, name):
        return [attrs for found, attrs in self.tags if found == tag and attrs.get("class") == name]


@pytest.fixture
def page(evaluation_folder):
    path, text = write_ranking(evaluation_folder)
    assert path == evaluation_folder / "index.html"
    return Page(path)


def test_it_needs_nothing_but_a_browser(page, evaluation_folder):
    text = (evaluation_folder / "index.html").read_text()
    assert "http" not in text and not {"link", "iframe"} & {tag for tag, _ in page.tags}
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.tags if tag == "img")
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert sorted(name for name in os.listdir(evaluation_folder) if not (evaluation_folder / name).is_dir()) == [
        "commands.txt", "evaluation.yaml", "index.html", "results.csv", "results.json"
    ]  # fmt: skip


def test_all_links_lead_somewhere(page, evaluation_folder):
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert len(links) > 20
    for href in links:
        assert href[1:] in ids if href.startswith("#") else (evaluation_folder / href).exists(), href
    assert "#rates" in links and "#pictures" in links and "loco/frozen/seed0/" in links


def test_the_first_screen(page):
    start = page.text.index("Frozen, loco is best of 2: 7.0 box AP, random 4.5: +2.5 ± 1.2")
    assert start < page.text.index("odd has no figure: the converter refused it: it has 3 <stages>")
    rows = page.table("encoder", "frozen box AP", "fine-tuned box AP")
    assert [row["encoder"] for row in rows] == ["loco", "simclr", "random_resnet18 (random)", "odd"]
    assert (rows[0]["frozen box AP"], rows[0]["fine-tuned box AP"]) == ("7.0 ± 2.5", "11.0 ± 2.5")
    assert (rows[0]["frozen box AP − random"], rows[0]["frozen rate"]) == ("+2.5 ± 1.2", "0.08")
    assert rows[0]["linear probe top-1"] == "50.0" and rows[1]["linear probe top-1"] == "–"
    assert set(rows[3].values()) == {"odd", "–"}
    assert "In all rows: fine-tuned rate 0.01; seeds 0, 1, 2; architecture resnet18." in " ".join(page.text.split())
    assert "architecture" not in rows[0] and "loco and simclr cannot be told apart" in page.text
    assert "loco: frozen: rate at the upper edge of the grid" in page.text
    assert "random_resnet18: frozen: rate at the lower edge of the grid; fine-tuned: 1 of 3 seeds" in page.text


def test_the_dots(page):
    panels = page.all("div", "panel")
    assert len(panels) == 2
    dots = page.all("circle", "mean")
    assert len(dots) == 6 and len(page.all("div", "dot control")) == 2
    assert float(dots[0]["cx"].rstrip("%")) == pytest.approx(100 * 7 / 20)  # both axes are 0 to 20
    titles = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and attrs.get("role")]
    assert titles[0] == "loco: 7.0 ± 2.5 box AP, seeds: 6.0, 7.0, 8.0"


def test_the_choice_of_the_rate(page):
    rows = page.table("encoder", "chosen")
    assert rows[0] == {
        "encoder": "loco", "chosen": "0.08, at the upper edge of the grid",
        "rate 0.02": "3.0", "rate 0.04": "5.0", "rate 0.08": "6.0",
    }  # fmt: skip
    assert rows[1]["chosen"] == "0.04" and rows[2]["rate 0.08"] == "its loss exploded"


def test_sizes_classes_costs_and_sources(page):
    sizes = page.table("encoder", "box AP", "box AP medium")
    assert sizes[0] == {
        "encoder": "loco", "box AP": "7.0", "box AP medium": "7.0", "box AP50": "14.0",
        "mask AP": "3.5", "mask AP medium": "3.5", "mask AP50": "7.0",
    }  # fmt: skip
    classes = page.table("class", "loco", "simclr", "random_resnet18")
    assert [row["loco"] for row in classes] == ["7.0", "–"]
    costs = page.table("encoder", "frozen: choosing the rate")
    assert (costs[0]["frozen: training"], costs[0]["frozen: choosing the rate"]) == ("3 min 00 s", "3 min 00 s")
    assert (costs[2]["frozen: choosing the rate"], costs[0]["peak memory"]) == ("2 min 00 s", "2.0 GB")
    assert costs[0]["linear probe"] == "3 s" and costs[0]["frozen: evaluation"] == "6 s"
    sources = page.table("encoder", "checkpoint", "SHA-256")
    assert sources[0]["SHA-256"] == "b" * 64 and sources[0]["layout"] == "loco-det"
    assert sources[0]["SHA-256 of converted weights"].startswith("0" * 64 + ", " + "1" * 64)
    assert "loco-det train --config-file <x>" in page.text and "c" * 64 in page.text


def test_runs_are_listed_with_links(page):
    rows = [row for head, *found in page.tables if head[:2] == ["run", "box AP"] for row in found]
    assert [row[:2] for row in rows[:2]] == [["loco/frozen/seed0", "6.0"], ["loco/frozen/seed1", "7.0"]]
    assert len(rows) == 3 * (3 + 3 + 3 + 1)


def pictures(page):
    found = {attrs["alt"]: attrs["src"] for tag, attrs in page.tags if tag == "img" and "_" in attrs["alt"]}
    return {alt: Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))) for alt, src in found.items()}


def test_the_same_images_side_by_side_with_the_truth_once(page):
    found = {alt: image for alt, image in pictures(page).items() if "000_a" in alt}
    assert list(found) == ["Ground truth of 000_a.png"] + [
        f"Prediction for 000_a.png: {row}, {protocol}"
        for protocol in ("frozen", "fine-tuned")
        for row in ("loco", "simclr", "random_resnet18")
    ]
    assert {image.size for image in found.values()} == {(50, 60)}
    colors = [np.asarray(image)[20:].mean(axis=(0, 1)).round(-1).tolist() for image in found.values()]
    assert colors[0] == [0, 200, 0] and colors[1] == [200, 0, 60]  # of the first seed, box AP 6


def test_a_light_head_says_so(evaluation_folder):
    write_settings(evaluation_folder, budget="minutes", protocols=["frozen"])
    page = Page(write_ranking(evaluation_folder)[0])
    assert page.text.index(LIGHT_NOTE[:40]) < page.text.index("Light head, box AP")
    assert page.table("encoder", "light head box AP") and "With a light head, loco is best of 2" in page.text
    assert LIGHT_NOTE in ranking_text(read_evaluation(evaluation_folder))
    assert json.loads((evaluation_folder / "results.json").read_text())["light_head"] is True


def test_a_single_class_has_no_table_of_its_own(evaluation_folder):
    """Its AP is that of all, and Detectron2 gives none by class."""
    for path in evaluation_folder.rglob("results.json"):
        content = json.loads(path.read_text())
        if content.get("kind") == "detection":
            path.write_text(json.dumps(content | {"thing_classes": ["car"]}))
    page = Page(write_ranking(evaluation_folder)[0])
    assert "By class" not in page.text and "AP by class" not in page.text and "By size" in page.text


def test_nothing_but_plans(evaluation_folder):
    """Before the first run, and with all rows refused."""
    for name in ("loco", "simclr", "random_resnet18"):
        shutil.rmtree(evaluation_folder / name)
    page = Page(write_ranking(evaluation_folder)[0])
    assert (
        "No detector has been evaluated yet." in page.text
        and "3 of 3 seeds without a figure (not run yet)" in page.text
    )
    assert [row["frozen box AP"] for row in page.table("encoder", "frozen box AP")] == ["–"] * 4
    write_settings(evaluation_folder, rows=[])
    assert "No detector" in Page(write_ranking(evaluation_folder)[0]).text


def test_rows_of_other_settings_have_a_plot_of_their_own(evaluation_folder, monkeypatch):
    monkeypatch.setattr(
        "loco_det.ranking.comparisons.comparability",
        lambda run: {"key": "b" if "simclr" in run.folder.parts else "a", "settings": {"X": 1}},
    )
    page = Page(write_ranking(evaluation_folder)[0])
    assert len(page.all("div", "panel")) == 4 and "other settings: below" in page.text
    assert page.text.count("Not comparable with the ranking above") == 2
    assert "simclr: frozen: of other settings than the other rows" in page.text


def test_near_zero_ap_is_on_an_axis_from_zero(evaluation_folder):
    rows = [{"name": "new", "architecture": "resnet18"}]
    write_settings(evaluation_folder, rows=rows, seeds=2, protocols=["frozen"])
    for seed in (0, 1):
        write_run(evaluation_folder / "new" / "frozen" / f"seed{seed}", 0.01)
    dots = Page(write_ranking(evaluation_folder)[0]).all("circle", "mean")
    assert [dot["cx"] for dot in dots] == ["1.0%"]


def test_the_csv(page, evaluation_folder):
    rows = list(csv.DictReader(io.StringIO((evaluation_folder / "results.csv").read_text())))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 3 * (3 + 3 + 1) + 1
    first = next(row for row in rows if row["name"] == "loco" and row["protocol"] == "frozen" and row["seed"] == "2")
    assert (first["checkpoint"], first["sha256"], first["rate"]) == ("loco.pth", "b" * 64, "0.08")
    assert (first["box_AP"], first["box_AP50"], first["box_APs"], first["mask_AP"]) == ("8.0", "16.0", "", "4.0")
    assert (first["seconds"], first["folder"], first["state"]) == ("60.0", "loco/frozen/seed2", "done")
    missing = next(row for row in rows if row["state"] == "not run yet" and row["protocol"] == "finetune")
    assert (missing["name"], missing["seed"], missing["box_AP"]) == ("random_resnet18", "1", "")
    refused = next(row for row in rows if row["name"] == "odd")
    assert refused["problem"] == "the converter refused it: it has 3 <stages>" and refused["protocol"] == ""
    probe = next(row for row in rows if row["name"] == "loco" and row["protocol"] == "probe")
    assert (probe["top1"], probe["seconds"], probe["seed"]) == ("50.0", "3.0", "")


def test_the_csv_names_the_checkpoint_of_each_seed(evaluation_folder):
    rows = [{"name": "loco", "checkpoints": ["a.pth", "b.pth"], "sha256": ["1" * 64, "2" * 64]}]
    write_settings(evaluation_folder, rows=rows, protocols=["frozen"])
    write_ranking(evaluation_folder)
    found = list(csv.DictReader(io.StringIO((evaluation_folder / "results.csv").read_text())))
    assert [(row["checkpoint"], row["sha256"][0]) for row in found] == [("a.pth", "1"), ("b.pth", "2"), ("a.pth", "1")]


def test_the_json(page, evaluation_folder):
    found = json.loads((evaluation_folder / "results.json").read_text())
    assert found["version"] == 1 and found["headline"].startswith("Frozen, loco is best of 2")
    assert found["settings"]["budget"] == "short" and "rows" not in found["settings"]
    loco = next(row for row in found["rows"] if row["name"] == "loco")
    assert loco["rates"] == {"frozen": 0.08, "finetune": 0.01} and len(loco["runs"]) == 7
    assert [one["rate"] for one in loco["held_out"]["frozen"]] == RATES
    assert [one["box_AP"] for one in loco["held_out"]["frozen"]] == [3.0, 5.0, 6.0]
    ranking = found["rankings"][0]
    assert ranking["entries"][0]["seeds"] == {"0": 6.0, "1": 7.0, "2": 8.0} and ranking["entries"][0]["mean"] == 7.0
    one = ranking["comparisons"][0]
    assert (one["first"], one["second"], one["kind"], one["mean"], one["seeds"]) == (
        "loco", "random_resnet18", "control", 2.5, 3
    )  # fmt: skip
    assert one["half"] == pytest.approx(1.2421, rel=1e-3) and one["over_images"] is None
    assert one["verdict"].startswith("loco is above chance (random_resnet18)")


def test_the_text_for_a_terminal(evaluation_folder):
    evaluation = read_evaluation(evaluation_folder)
    text = ranking_text(
        evaluation, rank(evaluation, lambda first, second, task: ImageError(2.5, 0.5, 2.0, 3.0, 50, 200))
    )
    lines = text.splitlines()
    assert lines[0].startswith("Frozen, loco is best of 2") and lines[1].startswith("Fine-tuned, simclr")
    assert any(re.match(r"\| loco +\| +7\.0 ± 2\.5 \|", line) for line in lines)
    assert "odd: the converter refused it: it has 3 <stages>." in lines
    assert (
        "Frozen: loco is above chance (random_resnet18) by 2.5 ± 1.2 box AP (95 % interval, 3 seeds); ± 0.5 over the"
        in text
    )
    assert lines[-1].startswith("Fine-tuned: ")


HOSTILE = "x\n| y \x1b[31m<script>alert(1)<script> \u202e$a_{$ `a` [b](javascript:c)"


def test_hostile_names_are_data(evaluation_folder):
    name = HOSTILE.replace("/", "")
    (evaluation_folder / "loco").rename(evaluation_folder / name)
    rows = [
        {"name": name, "checkpoints": [HOSTILE], "architecture": HOSTILE, "sha256": [HOSTILE]},
        {"name": "b", "problem": HOSTILE},
    ]
    data = {"name": HOSTILE, "test": {HOSTILE: HOSTILE}, "classes": [HOSTILE]}
    write_settings(evaluation_folder, rows=rows, data=data, options=[HOSTILE], notes=[HOSTILE], budget=HOSTILE)
    (evaluation_folder / "commands.txt").write_text(HOSTILE)
    path, text = write_ranking(evaluation_folder)
    page = Page(path)
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    assert not any(attrs["href"].startswith("javascript") for tag, attrs in page.tags if tag == "a")
    for shown in (path.read_text(), text):
        assert "\x1b" not in shown and "\u202e" not in shown


def test_a_full_disk_leaves_the_page_as_it_was(evaluation_folder, monkeypatch):
    before = write_ranking(evaluation_folder)[0].read_text()

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_ranking(evaluation_folder)
    assert (evaluation_folder / "index.html").read_text() == before and not list(evaluation_folder.glob(".*tmp*"))

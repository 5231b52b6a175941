"""loco-det runs: what it prints of made-up runs."""

import csv
import io
import json
import subprocess
import sys
import time

import pytest
from checkout import ROOT
from child_processes import child_environment

from loco_det.cli.lists import runs as command
from loco_det.cli.lists.runs import main
from loco_det.runs.summary import NAMES


@pytest.fixture
def listed(tmp_path, detection, pretraining, readouts):
    """A folder with a run of each kind, in all states."""
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.json").write_text("{")
    results = json.loads((detection[0] / "results.json").read_text())
    (detection[0] / "results.json").write_text(
        json.dumps(results | {"comparability": {"key": "0123456789abcdef", "settings": {}}})
    )
    return tmp_path


def printed(capsys, *arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out


def names(text):
    return [row["name"] for row in json.loads(text)]


def test_the_table(capsys, listed):
    head, _, *rows = [line.strip("|").split("|") for line in printed(capsys, listed).splitlines()]
    cells = {row[0].strip(): dict(zip(map(str.strip, head), map(str.strip, row), strict=True)) for row in rows}
    assert list(cells) == [
        "damaged", "demo/finetune", "demo/frozen", "demo/loco", "readouts/begun", "readouts/knn", "readouts/linear"
    ]  # fmt: skip
    done = cells["demo/frozen"]
    assert (done["kind"], done["state"], done["data"], done["backbone"]) == (
        "detection", "done", "demo_val", "ResNet-18"
    )  # fmt: skip
    assert (done["box AP"], done["mask AP"], done["iterations"], done["time"]) == ("12.3", "10.1", "300", "2 min 03 s")
    assert done["top-1"] == "–" and len(done["date"]) == len("2026-11-30 12:00")
    assert cells["demo/finetune"]["iterations"] == "120 of 300" and cells["demo/finetune"]["state"] == "not finished"
    assert cells["demo/loco"]["kind"] == "pretraining" and cells["demo/loco"]["backbone"] == "resnet18"
    assert cells["demo/loco"]["iterations"] == "100" and cells["damaged"]["state"] == "damaged"
    assert cells["readouts/knn"]["top-1"] == "40.0" and cells["readouts/knn"]["data"] == "nette/train"
    assert cells["readouts/linear"]["top-1"] == "–"  # its last stage has diverged


def test_the_key_is_shown_where_a_run_has_one(listed, capsys):
    head, _, row = printed(capsys, listed, "--match", "frozen").splitlines()
    assert head.split("|")[-2].strip() == "key" and row.split("|")[-2].strip() == "01234567"
    assert json.loads(printed(capsys, listed, "--match", "frozen", "--json"))[0]["key"] == "0123456789abcdef"


def test_filters(capsys, listed):
    assert names(printed(capsys, listed, "--kind", "pretraining", "--json")) == ["demo/loco"]
    assert names(printed(capsys, listed, "--state", "not finished", "--json")) == ["demo/finetune", "readouts/begun"]
    assert names(printed(capsys, listed, "--match", "BACKBONE.pkl", "--json")) == ["demo/frozen"]  # its weights
    assert names(printed(capsys, listed, "--match", "resnet-18", "--json")) == ["demo/finetune", "demo/frozen"]
    assert names(printed(capsys, listed, "--match", "nette", "--kind", "readout", "--json")) == [
        "readouts/begun", "readouts/knn", "readouts/linear"
    ]  # fmt: skip
    assert json.loads(printed(capsys, listed, "--match", "nothing", "--json", code=1)) == []
    main([str(listed), "--match", "nothing"])
    assert capsys.readouterr().err == f"error: none of the 7 runs beneath {listed} is as asked for\n"


def write_ap(folder, ap):
    folder.mkdir(parents=True)
    about = {"dataset": "a", "seconds": 10, "backbone": "ResNet-50", "weights": "a.pkl", "iteration": 4, "max_iter": 4}
    (folder / "results.json").write_text(json.dumps({**about, "results": {"bbox": {"AP": ap}}}))


def test_sorted(capsys, tmp_path):
    for name, ap in (("b", 3.0), ("a", None), ("c", 20.0)):
        write_ap(tmp_path / name, ap)
    assert names(printed(capsys, tmp_path, "--json")) == ["a", "b", "c"]
    assert names(printed(capsys, tmp_path, "--sort", "ap", "--json")) == ["c", "b", "a"]
    assert names(printed(capsys, tmp_path, "--sort", "ap", "--reverse", "--json")) == ["b", "c", "a"]  # unknown: last
    assert names(printed(capsys, tmp_path, "--reverse", "--json")) == ["c", "b", "a"]
    for sort in command.SORTS:
        assert len(printed(capsys, tmp_path, "--sort", sort).splitlines()) == 5


def test_csv(capsys, listed):
    rows = list(csv.DictReader(io.StringIO(printed(capsys, listed, "--csv"))))
    assert tuple(rows[0]) == NAMES and len(rows) == 7
    done = next(row for row in rows if row["name"] == "demo/frozen")
    assert (done["box_ap"], done["seconds"], done["planned"]) == ("12.34", "123.4", "300")
    assert done["folder"] == str(listed / "demo" / "frozen") and done["top1"] == ""


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs at or beneath"):
        main([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        main([str(tmp_path / "gone")])


def test_hundreds_of_runs_are_listed_at_once_without_torch(tmp_path):
    for i in range(200):
        write_ap(tmp_path / f"run{i}", float(i))
        (tmp_path / f"run{i}" / "config.yaml").write_text("MODEL: {META_ARCHITECTURE: X}\n" * 3000)
    code = "import sys; sys.modules['torch'] = sys.modules['detectron2'] = None\n"
    code += f"from loco_det.cli.main import main; sys.exit(main(['runs', {str(tmp_path)!r}]))"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 202, done.stderr
    assert time.monotonic() - began < 10  # parsing the configs of finished runs would take a minute

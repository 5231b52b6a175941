"""loco-det checkpoints: what it prints."""

import json
import subprocess
import sys

import pytest
from checkout import ROOT
from child_processes import child_environment

from loco_det.checkpoints import published_checkpoints
from loco_det.cli.lists.checkpoints import main

ENTRIES = published_checkpoints()


def printed(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_table(capsys):
    head, *rows = printed(capsys).splitlines()
    assert head.split() == ["name", "project", "architecture", "licence", "size", "URL"]
    assert [row.split()[0] for row in rows] == list(ENTRIES)
    assert [row.split()[-1] for row in rows] == [entry.url for entry in ENTRIES.values()]
    assert all(entry.licence in row and entry.arch in row for entry, row in zip(ENTRIES.values(), rows, strict=True))


def test_urls_and_json(capsys):
    assert printed(capsys, "--urls").split() == [entry.url for entry in ENTRIES.values()]
    assert printed(capsys, "barlowtwins", "--urls").strip() == ENTRIES["barlowtwins"].url
    found = json.loads(printed(capsys, "--json"))
    assert [row["name"] for row in found] == list(ENTRIES) and found[2] == ENTRIES[found[2]["name"]].as_dict()


def test_one_of_them(capsys):
    text = printed(capsys, "moco_v2_800ep")
    entry = ENTRIES["moco_v2_800ep"]
    for part in (entry.url, entry.page, "71.1 % on ImageNet-1k, linear classifier", "MD5", "a04e12f8", "CC-BY-NC-4.0"):
        assert part in text
    assert "moco: what convert takes it for" in text and "convert_to_d2.py moco_v2_800ep moco_v2_800ep.pkl" in text
    assert "as trained" in printed(capsys, "torchvision_v1") and "103 MB" not in printed(capsys, "torchvision_v1")


@pytest.mark.parametrize(("name", "said"), [("moco_v2_80ep", "did you mean moco_v2_800ep?"), ("??", "lists them")])
def test_a_name_that_is_not_there(capsys, name, said):
    with pytest.raises(FileNotFoundError, match="no published checkpoint of that name") as caught:
        main([name])
    assert said in str(caught.value)


def test_it_needs_nothing_that_takes_seconds_to_import():
    code = "import sys; sys.modules['torch'] = sys.modules['detectron2'] = None\n"
    code += "from loco_det.cli.main import main; sys.exit(main(['checkpoints', 'swav_800ep']))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "loco-det convert swav_800ep swav_800ep.pkl" in done.stdout, done.stderr

"""Names of image files: missing ones and what is meant, and those that lead out of the folder."""

import os
import unicodedata

import pytest

from loco_det.data.checks.findings import Report
from loco_det.data.checks.image_files import check_files, is_inside


@pytest.fixture
def look(tmp_path):
    """Names that are good, and {kind: examples}, of a folder with some files."""
    folder = tmp_path / "data" / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "../private.png"):
        (folder / name).touch()

    def look(*names, **options):
        report = Report("some")
        good = check_files(report, str(folder), names, **options)
        return good, {kind: found.examples for kind, found in report.findings.items()}

    look.folder = folder
    return look


def test_there_and_missing(look):
    names = ("a.png", "sub/b.png", "sub/../a.png", "./a.png")
    assert look(*names, links=True) == (list(names), {})
    good, found = look("a.png", "sub/c.png", "nowhere/d.png", "", "sub", "a\0b/c.png")
    assert good == ["a.png"] and found.keys() == {"image_missing"} and len(found["image_missing"]) == 5
    assert found["image_missing"][0] == str(look.folder / "sub/c.png")


def forms(text):
    return [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]


@pytest.mark.parametrize("order", [1, -1])
def test_unicode_forms(look, order):
    there, written = forms("Île é.png")[::order]
    (look.folder / there).touch()
    if written in os.listdir(look.folder) or (look.folder / written).exists():
        pytest.skip("the file system takes both forms for one")
    good, found = look(written)
    (line,) = found["image_missing"]
    assert good == [] and f"the folder has {there!a}, the annotations {written!a}" in line and "Unicode form" in line
    assert look(there) == ([there], {})


def test_latin_1_name_on_the_disk(look):
    try:
        (look.folder / os.fsdecode(b"caf\xe9.png")).touch()
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    (line,) = look("café.png")[1]["image_missing"]
    assert r"the folder has 'caf\udce9.png', the annotations 'caf\xe9.png'" in line and "rename the file" in line
    line.encode()  # it can be printed


def test_other_case(look):
    (look.folder / "IMG_1.JPG").touch()
    if (look.folder / "img_1.jpg").exists():
        pytest.skip("the file system takes both for one")
    (line,) = look("img_1.jpg")[1]["image_missing"]
    assert line.endswith("img_1.jpg: the folder has IMG_1.JPG, which differs in upper and lower case")


def test_names_of_windows_and_with_a_folder_too_many(look):
    (line,) = look("sub\\b.png")[1]["image_missing"]
    assert line.endswith("b.png: there is one with / for \\: write it so")
    (line,) = look("images/a.png")[1]["image_missing"]
    assert line.endswith(f"images/a.png: {look.folder} has a.png: leave out the folder in file_name")
    (line,) = look("..\\private.png")[1]["image_missing"]
    assert line.endswith("private.png")  # what lies outside is not told


def test_broken_link(look):
    (look.folder / "link.png").symlink_to("../gone.png")
    (line,) = look("link.png")[1]["image_missing"]
    assert line.endswith("link.png is a link to ../gone.png, which is not a file")


OUTSIDE = ["../private.png", "sub/../../private.png", "{}/private.png", "{}/images/../private.png"]


@pytest.mark.parametrize("form", OUTSIDE)
def test_names_that_lead_out(look, form):
    name = form.format(look.folder.parent)
    assert look("a.png", name) == (["a.png"], {"image_outside": [name]})
    good, found = look("a.png", name, allow_outside=True)
    assert good == ["a.png", name] and found == {"image_elsewhere": [f"{name}: {look.folder.parent}/private.png"]}
    assert not is_inside(str(look.folder), name)


def test_absolute_names_inside(look):
    name = str(look.folder / "a.png")
    assert look(name) == ([name], {})
    assert is_inside("/data/images/", "/data/images/a.png") and not is_inside("/data/images", "/data/images2/a.png")
    assert is_inside("data/images", "..a/b..png") and not is_inside("data/images", "..")


def test_links_that_lead_out_are_noted(look, tmp_path):
    (look.folder / "out.png").symlink_to("../private.png")
    (look.folder / "in.png").symlink_to("a.png")
    (look.folder / "other").symlink_to(look.folder.parent)
    names = ("out.png", "in.png", "other/private.png", "other/images/a.png")
    assert look(*names) == (list(names), {})
    target = look.folder.parent / "private.png"
    lines = [f"out.png: {target}", f"other/private.png: {target}"]
    assert look(*names, links=True) == (list(names), {"image_elsewhere": lines})


def test_a_folder_that_is_a_link_itself(look, tmp_path):
    (tmp_path / "train").symlink_to(look.folder)
    report = Report("some")
    assert check_files(report, str(tmp_path / "train"), ["a.png", "sub/b.png"], links=True) and report.findings == {}

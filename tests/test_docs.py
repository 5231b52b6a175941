"""What docs/ and CONTRIBUTING.md name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATH = re.compile(r"`((?:pretrain|loco_det|tests|tools|configs|benchmarks|docs)/[\w./-]*)`")
PAGES = ["CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_is_named_exists(page):
    named = set(PATH.findall((ROOT / page).read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


SOURCES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("pretrain", "loco_det", "tools", "configs", "studies", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".yaml") and path.name != "config_names.py"  # which has names of before
]


def test_every_file_that_a_comment_names_exists():
    """Paths of the packages and tests in comments, docstrings and messages of sources and configs."""
    named = re.compile(r"(?<![\w/.])((?:pretrain|loco_det|tests|studies|benchmarks)/[\w/]+\.py)\b")
    lost = {name: found for name in SOURCES if (found := [
        path for path in named.findall((ROOT / name).read_text()) if not (ROOT / path).exists()
    ])}  # fmt: skip
    assert not lost


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("package", ["pretrain", "loco_det"])
def test_the_map_shows_every_room(package):
    text = (ROOT / "docs" / "architecture.md").read_text()
    shown = set(re.findall(rf"^\| `({package}/[\w.]+)/?` \|", text, re.MULTILINE))
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / package).glob("*/__init__.py")}
    assert shown == folders | {f"{package}/config.py"}

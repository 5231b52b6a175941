"""Rules of the house, by the sources: what no file of the packages, tools, benchmarks, studies and examples does."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("loco_det", "pretrain", "tools", "benchmarks", "studies", "examples")


def sources():
    paths = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(paths)}


def sets_a_class(tree):
    """Lines in which an object gets another class: ``a.__class__ = B``, also by setattr or in a loop's head."""
    stored = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "__class__" and not isinstance(node.ctx, ast.Load)
    ]
    by_name = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", "") or getattr(node.func, "attr", "")) in ("setattr", "__setattr__")
        and any(isinstance(part, ast.Constant) and part.value == "__class__" for part in node.args)
    ]
    return sorted(stored + by_name)


def imports_mock(tree):
    """Lines that import unittest, whose mock is for tests, or the package mock."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [] if node.level else [node.module or ""]
        else:
            continue
        if any(name.partition(".")[0] in ("unittest", "mock") for name in names):
            lines.append(node.lineno)
    return lines


def test_the_rules_find_what_they_forbid():
    code = "m.__class__ = B\nfor x.__class__ in y: pass\nsetattr(m, '__class__', B)\nm.__class__.__name__\n"
    assert sets_a_class(ast.parse(code)) == [1, 2, 3]
    code = "from unittest import mock\nimport unittest.mock as m\nimport mock\nfrom .mock import x\nimport mocking\n"
    assert imports_mock(ast.parse(code)) == [1, 2, 3]


@pytest.mark.parametrize("rule", [sets_a_class, imports_mock])
def test_the_right_thing_is_built_in_the_first_place(rule):
    broken = {name: lines for name, tree in sources().items() if (lines := rule(tree))}
    assert not broken, f"{rule.__doc__} In: {broken}"


def test_all_folders_are_read():
    read = sources()
    assert all(any(name.startswith(f"{folder}/") for name in read) for folder in FOLDERS)

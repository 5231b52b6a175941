"""Everything public has type hints; `make lint` has mypy check them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for package in ("pretrain", "loco_det") for path in sorted((ROOT / package).rglob("*.py"))]


def public_functions(body: list[ast.stmt], method: bool = False):
    """(function, its arguments but for self or cls) of a module or a class, and of the public classes in it."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, method=True)
        elif isinstance(node, ast.FunctionDef) and (node.name in ("__init__", "__call__") or node.name[0] != "_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
            bound = 1 if method and not static else 0
            yield node, [*arguments[bound:], *filter(None, (node.args.vararg, node.args.kwarg))]


def lacking(source: str) -> list[str]:
    """What lacks a hint, such as "f(x)" or "f -> ?"."""
    found = []
    for function, arguments in public_functions(ast.parse(source).body):
        found += [f"{function.name}({a.arg})" for a in arguments if a.annotation is None]
        if function.returns is None and function.name != "__init__":
            found.append(f"{function.name} -> ?")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_everything_public_has_hints(path):
    assert not lacking(path.read_text())


def test_what_lacks_is_found():
    source = "def f(x, *rest, y: int = 0): ...\ndef _f(x): ...\nclass A:\n    def __init__(self, z): ...\n"
    assert lacking(source) == ["f(x)", "f(rest)", "f -> ?", "__init__(z)"]


def test_type_checkers_find_the_hints():
    assert all((ROOT / package / "py.typed").exists() for package in ("pretrain", "loco_det"))

"""The structure of the packages, from the import statements of their sources.

``python tests/rooms.py [CHECKOUT]`` prints each room, a folder or a module beside folders, with the rooms it imports.
"""

import ast
import sys
from pathlib import Path

PACKAGES = ("pretrain", "loco_det")


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the packages below a checkout."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that one module imports, anywhere in its source: also inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return (found & known.keys()) - {name}


def room(name: str) -> str:
    """The room of a module: ``pretrain.files.lock`` is in ``pretrain.files``."""
    return ".".join(name.split(".")[:2])


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    known = modules(root)
    return {name: imports(name, path, known) for name, path in known.items()}


def rooms(modules_graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Room -> the other rooms that its modules import."""
    found = {room(name): set() for name in modules_graph if name not in PACKAGES}
    for name, targets in modules_graph.items():
        if name not in PACKAGES:
            found[room(name)] |= {room(target) for target in targets} - {room(name), *PACKAGES}
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A circle among the arrows, its first member named again at the end; empty if there is none."""
    done = set()

    def search(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in sorted(arrows[name]):
            if found := search(target, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := search(name, []))), [])


def drawn(modules_graph: dict[str, set[str]]) -> str:
    """The rooms as lines of text: number of modules, name, and what is imported."""
    count = {}
    for name in modules_graph:
        if name not in PACKAGES:
            count[room(name)] = count.get(room(name), 0) + 1
    lines = [
        f"{count[name]:3} {name:24} -> {', '.join(sorted(targets)) or '-'}"
        for name, targets in sorted(rooms(modules_graph).items(), key=lambda item: (item[0].split(".")[0], item[0]))
    ]
    found = circle(rooms(modules_graph))
    return "\n".join([*lines, f"circle: {' -> '.join(found)}" if found else "no circle between rooms"])


if __name__ == "__main__":
    print(drawn(graph(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent))))

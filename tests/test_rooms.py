"""Which room may import which, read from the sources: low floors know nothing of high ones."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # test folders are no packages

from rooms import circle, drawn, graph, modules, room, rooms

ROOT = Path(__file__).resolve().parent.parent
# From the ground up. A room may import those that it names and nothing else; docs/architecture.md explains them.
ALLOWED = {
    "pretrain.processes": set(),
    "pretrain.files": {"processes"},
    "pretrain.encoders": set(),
    "pretrain.data": {"files", "processes"},
    "pretrain.learning": {"encoders"},
    "pretrain.engine": {"processes", "files", "encoders", "data", "learning"},
    "pretrain.config": {"processes", "engine"},
    "pretrain.readout": {"processes", "files", "data", "engine", "config"},
    "pretrain.model_card": {"files", "encoders", "engine", "config", "readout"},
}
# All that a detector needs of pretraining
SHARED = {f"pretrain.{name}" for name in ("processes", "files", "encoders", "engine")}
ALLOWED_OF_DETECTION = {
    "loco_det.config": set(),
    "loco_det.data": set(),
    "loco_det.demo_scenes": set(),
    "loco_det.modeling": set(),
    "loco_det.checkpoints": set(),
    "loco_det.convert": {"config", "modeling", "checkpoints"},
    "loco_det.evaluation": {"data"},
    "loco_det.runs": {"config"},
    "loco_det.report": {"data", "evaluation", "runs"},
    "loco_det.ranking": {"config", "data", "evaluation", "runs", "report", "checkpoints"},
    "loco_det.engine": {"data", "modeling", "evaluation", "runs", "report"},
}
COMMANDS = ("loco_det.cli", "loco_det.__main__")  # may import everything, and nothing may import them
PRETRAINING_CONFIG = "loco_det.runs"  # compares runs of pretraining with their published configs


@pytest.fixture(scope="module")
def modules_graph():
    return graph(ROOT)


def test_every_room_imports_what_it_may(modules_graph):
    allowed = {name: {f"pretrain.{target}" for target in targets} for name, targets in ALLOWED.items()}
    for name, targets in ALLOWED_OF_DETECTION.items():
        allowed[name] = {f"loco_det.{target}" for target in targets} | SHARED
    allowed[PRETRAINING_CONFIG].add("pretrain.config")
    found = rooms(modules_graph)
    for name in COMMANDS:
        found.pop(name)
    assert found.keys() == allowed.keys(), "a room without a rule, or a rule without a room"
    wrong = {name: targets - allowed[name] for name, targets in found.items() if targets - allowed[name]}
    assert not wrong


def test_there_is_no_circle(modules_graph):
    assert circle(rooms(modules_graph)) == [] and circle(modules_graph) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]


def test_all_kinds_of_imports_are_seen(tmp_path):
    (tmp_path / "pretrain" / "low").mkdir(parents=True)
    (tmp_path / "pretrain" / "__init__.py").write_text("")
    (tmp_path / "pretrain" / "low" / "__init__.py").write_text("from . import one\n")
    (tmp_path / "pretrain" / "low" / "one.py").write_text("import os\nimport pretrain.low.two\n")
    (tmp_path / "pretrain" / "low" / "two.py").write_text("def f():\n    from ..high import name\n")
    (tmp_path / "pretrain" / "high.py").write_text("from pretrain.low import one, other\n")
    found = graph(tmp_path)
    assert found["pretrain.low"] == {"pretrain.low.one"} and found["pretrain.low.one"] == {"pretrain.low.two"}
    assert found["pretrain.low.two"] == {"pretrain.high"} and found["pretrain.high"] == {
        "pretrain.low.one",
        "pretrain.low",
    }
    assert rooms(found) == {"pretrain.low": {"pretrain.high"}, "pretrain.high": {"pretrain.low"}}
    assert "circle: pretrain.high -> pretrain.low -> pretrain.high" in drawn(found)


def test_no_room_is_a_crowd():
    counts = {}
    for path in modules(ROOT).values():
        if path.name != "__init__.py":
            folder = path.parent.relative_to(ROOT).as_posix()
            counts[folder] = counts.get(folder, 0) + 1
    assert max(counts.values()) <= 18, counts
    assert {room(name) for name in modules(ROOT)} >= {"pretrain.files", "loco_det.engine"}

"""The files of a trace."""

import json

from PIL import Image

from pretrain.engine.stage_parallel.trace import Event, write_timeline, write_trace

EVENTS = {
    "res2": [Event("forward", "res2", 3, 100.0, 101.0), Event("wait", "gradient of res3", 3, 101.0, 101.5)],
    "res3": [Event("update", "", 3, 101.25, 103.0)],
}


def test_a_trace(tmp_path):
    write_trace(tmp_path / "trace.json", EVENTS)
    found = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [(e["pid"], e["args"]["name"]) for e in found if e["ph"] == "M"] == [(0, "res2"), (1, "res3")]
    bars = [(e["pid"], e["name"], e["ts"], e["dur"]) for e in found if e["ph"] == "X"]
    assert bars == [(0, "forward res2", 0, 1e6), (0, "wait gradient of res3", 1e6, 5e5), (1, "update", 1.25e6, 1.75e6)]


def test_a_timeline(tmp_path):
    write_timeline(tmp_path / "timeline.png", EVENTS)
    width, height = Image.open(tmp_path / "timeline.png").size
    assert width > 3 * height > 300
    write_timeline(tmp_path / "empty.png", {"res2": []})

"""metrics.json: lines that a kill tore, and a run that went back."""

import json

import pytest
from detectron2.utils.events import EventStorage

from pretrain.engine.writers import MetricsWriter
from pretrain.files.metrics import Metrics


def log(path, *iterations, **scalars):
    """Log some iterations as a new process would."""
    with EventStorage() as storage:
        writer = MetricsWriter(path)
        for storage.iter in iterations:
            storage.put_scalars(lr=0.1, total_loss=1.0 + storage.iter, smoothing_hint=False, **scalars)
            writer.write()
        writer.close()


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_half_a_line_does_not_swallow_the_next(tmp_path, cut):
    path = tmp_path / "metrics.json"
    log(path, 0, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    log(path, 2, 3)
    assert [entry["iteration"] for entry in Metrics.read(path).lines] == [0, 1, 2, 3]
    assert path.read_bytes().startswith(whole[:-cut] + b"\n")  # nothing that was there is lost


def test_a_whole_file_gets_no_empty_line(tmp_path):
    log(tmp_path / "metrics.json", 0)
    log(tmp_path / "metrics.json", 1)
    assert [json.loads(line)["iteration"] for line in (tmp_path / "metrics.json").read_text().splitlines()] == [0, 1]


def lines(tmp_path, *entries):
    (tmp_path / "metrics.json").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return Metrics.read(tmp_path / "metrics.json").lines


@pytest.mark.parametrize("step", ["lr", "data_time"])
def test_what_was_logged_beyond_the_checkpoint_is_dropped(tmp_path, step):
    entries = [{"iteration": i, step: 0.1, "x": i} for i in (0, 1, 2)]
    metrics = lines(tmp_path, *entries, {"iteration": 1, step: 0.1, "x": 9}, {"iteration": 0, "bbox/AP": 5.0})
    assert [(m["iteration"], m["x"]) for m in metrics] == [(0, 0), (1, 9)] and metrics[0]["bbox/AP"] == 5.0
    assert [m["x"] for m in lines(tmp_path, *entries, {"iteration": 0, step: 0.1, "x": 7})] == [7]


def test_lines_that_are_none(tmp_path):
    (tmp_path / "metrics.json").write_bytes(
        b'\xff\xfe{"iteration": 1}\n[3]\n"a"\nnull\n{"iteration": "x"}\n{"iteration": 1e999}\n{"a": 1}\n'
        + b"[" * 100_000 + b'\n{"iteration": 2, "lr": NaN, "x": 1}\n'
    )  # fmt: skip
    metrics = Metrics.read(tmp_path / "metrics.json")
    assert [m["iteration"] for m in metrics.lines] == [2]
    assert metrics.matching("(.+)").keys() == {"iteration", "x"} and Metrics.read(tmp_path / "gone").lines == []
    huge = Metrics([{"iteration": 0, "x": 10**400}, {"iteration": 1, "x": 1}])
    assert huge.matching("(x)")["x"].tolist() == [[2], [1]]


def test_only_numbers_are_metrics(tmp_path):
    path = tmp_path / "metrics.json"
    lines = ['{"iteration": 3, "lr": 0.1, "loss_a": "x", "loss_b": [1], "loss_c": true, "loss_d": null}']
    lines += [f'{{"iteration": 4, "lr": 1{"0" * 400}, "loss_a": NaN, "time": 1e308}}', "[1]", '{"iteration": "5"}']
    lines += ['{"iteration": -1, "lr": 1}', f'{{"iteration": {10**30}, "lr": 1}}', '{"iteration": Infinity, "lr": 1}']
    path.write_text("\n".join(lines))
    metrics = Metrics.read(path)
    found = metrics.lines
    assert found[0] == {"iteration": 3, "lr": 0.1} and [sorted(entry) for entry in found[1:]] == [
        ["iteration", "loss_a", "time"]
    ]
    assert metrics.seconds is None and metrics.matching("(loss_a)") == {}


def test_seconds_of_a_training():
    times = [{"iteration": 9, "time": 2.0}, {"iteration": 19, "time": 1.0}, {"iteration": 19, "lr": 1.0}]
    assert Metrics(times).seconds == 30 and Metrics().seconds is None

"""metrics.json: lines that a kill tore, a full disk, and a run that went back."""

import errno
import json
import logging
import threading
import types

import pytest
from detectron2.utils.events import EventStorage

from pretrain.engine.metrics import (
    LinesFirst,
    MetricPrinter,
    MetricsWriter,
    TensorboardWriter,
    read_metrics,
    series,
    training_seconds,
)


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
    assert [entry["iteration"] for entry in read_metrics(path)] == [0, 1, 2, 3]
    assert path.read_bytes().startswith(whole[:-cut] + b"\n")  # nothing that was there is lost


def test_a_whole_file_gets_no_empty_line(tmp_path):
    log(tmp_path / "metrics.json", 0)
    log(tmp_path / "metrics.json", 1)
    assert [json.loads(line)["iteration"] for line in (tmp_path / "metrics.json").read_text().splitlines()] == [0, 1]


def lines(tmp_path, *entries):
    (tmp_path / "metrics.json").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return read_metrics(tmp_path / "metrics.json")


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
    metrics = read_metrics(tmp_path / "metrics.json")
    assert [m["iteration"] for m in metrics] == [2]
    assert series(metrics, "(.+)").keys() == {"iteration", "x"} and read_metrics(tmp_path / "gone") == []
    assert series([{"iteration": 0, "x": 10**400}, {"iteration": 1, "x": 1}], "(x)")["x"].tolist() == [[2], [1]]


@pytest.mark.parametrize("writer", [MetricsWriter])
def test_a_full_disk_is_named(tmp_path, writer):
    path = tmp_path / "metrics.json"
    path.symlink_to("/dev/full")
    with EventStorage() as storage:
        writer = writer(path)
        storage.put_scalar("lr", 0.1)
        for call in (writer.write, writer.close):
            with pytest.raises(OSError) as error:
                call()
            assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))


def test_a_full_disk_is_named_by_tensorboard(tmp_path, monkeypatch):
    with EventStorage() as storage:
        writer = TensorboardWriter(str(tmp_path))
        storage.put_scalar("lr", 0.1)
        writer.write()

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(writer._writer, "add_scalar", full)
        storage.iter = 1
        storage.put_scalar("lr", 0.1)
        with pytest.raises(OSError, match="tfevents"):
            writer.write()
        writer.close()


def test_a_second_line_of_the_same_iteration_is_not_printed(caplog):
    """Its rate would be a division by no iterations: Detectron2 calls writers again when a step has failed."""
    logging.getLogger("detectron2").propagate = True
    with EventStorage() as storage, caplog.at_level(logging.INFO):
        printer = MetricPrinter(10)
        for storage.iter in (0, 0, 1, 1):
            storage.put_scalar("total_loss", 1.0)
            printer.write()
    assert len(caplog.records) == 2


def test_the_place_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="metrics.json"):
        MetricsWriter(tmp_path / "file" / "metrics.json")


def test_only_numbers_are_metrics(tmp_path):
    path = tmp_path / "metrics.json"
    lines = ['{"iteration": 3, "lr": 0.1, "loss_a": "x", "loss_b": [1], "loss_c": true, "loss_d": null}']
    lines += [f'{{"iteration": 4, "lr": 1{"0" * 400}, "loss_a": NaN, "time": 1e308}}', "[1]", '{"iteration": "5"}']
    lines += ['{"iteration": -1, "lr": 1}', f'{{"iteration": {10**30}, "lr": 1}}', '{"iteration": Infinity, "lr": 1}']
    path.write_text("\n".join(lines))
    found = read_metrics(path)
    assert found[0] == {"iteration": 3, "lr": 0.1} and [sorted(entry) for entry in found[1:]] == [
        ["iteration", "loss_a", "time"]
    ]
    assert training_seconds(found) is None and series(found, "(loss_a)") == {}


def test_seconds_of_a_training():
    times = [{"iteration": 9, "time": 2.0}, {"iteration": 19, "time": 1.0}, {"iteration": 19, "lr": 1.0}]
    assert training_seconds(times) == 30 and training_seconds([]) is None


def test_what_is_found_after_an_iterations_line_has_one_of_its_own(tmp_path):
    path, board = tmp_path / "metrics.json", tmp_path / "board"
    with EventStorage() as storage:
        writers = [MetricsWriter(path), TensorboardWriter(str(board))]
        first = LinesFirst(writers, period=1)
        first.trainer = types.SimpleNamespace(iter=0, max_iter=2)
        for storage.iter in (0, 1):
            storage.put_scalars(lr=0.1, total_loss=1.0 + storage.iter, smoothing_hint=False)
            first.after_step()
            storage.put_scalar("knn/res5-top1", 50.0 + storage.iter, smoothing_hint=False)
            for _ in range(2):  # once only
                for writer in writers:
                    writer.write()
        first.after_train()  # closes nothing
        storage.put_scalar("late", 3.0, smoothing_hint=False)
        for writer in writers:
            writer.write()
            writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sorted(line) for line in lines] == [
        ["iteration", "lr", "total_loss"], ["iteration", "knn/res5-top1"],
        ["iteration", "lr", "total_loss"], ["iteration", "knn/res5-top1"], ["iteration", "late"],
    ]  # fmt: skip
    assert [(row["iteration"], row["total_loss"], row["knn/res5-top1"]) for row in read_metrics(path)] == [
        (0, 1.0, 50.0), (1, 2.0, 51.0),
    ]  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(board)).Reload()
    for name, values in {"total_loss": [1.0, 2.0], "knn/res5-top1": [50.0, 51.0], "late": [3.0]}.items():
        assert [event.value for event in curves.Scalars(name)] == values


def test_a_full_disk_under_tensorboard_is_an_error_without_a_traceback(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    with EventStorage() as storage:
        writer = TensorboardWriter(str(tmp_path))
        storage.put_scalars(lr=0.1)
        writer.write()
        (events,) = tmp_path.glob("events*")
        events.unlink()
        events.symlink_to("/dev/full")
        with pytest.raises(OSError, match="events.out.tfevents") as raised:
            for storage.iter in range(1, 100):
                storage.put_scalars(lr=0.1)
                writer.write()
            writer.close()
    assert raised.value.errno == errno.ENOSPC and told == []
    thread = threading.Thread(target=lambda: {}["other threads, as ever"])
    thread.start()
    thread.join()
    assert told == [KeyError]

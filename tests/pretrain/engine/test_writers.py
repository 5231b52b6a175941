"""What writes metrics.json, TensorBoard's files and the lines on the terminal."""

import errno
import json
import logging
import threading
import types

import pytest
from detectron2.utils.events import EventStorage

from pretrain.engine.writers import LinesFirst, MetricPrinter, MetricsWriter, TensorboardWriter
from pretrain.files.metrics import Metrics


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
    assert len({id(record) for record in caplog.records}) == 2  # a test before may have given loggers handlers


def test_the_place_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="metrics.json"):
        MetricsWriter(tmp_path / "file" / "metrics.json")


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
    assert [(row["iteration"], row["total_loss"], row["knn/res5-top1"]) for row in Metrics.read(path).lines] == [
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

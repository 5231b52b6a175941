"""Writers of a run's scalars. ``files/metrics.py`` reads metrics.json without Detectron2."""

import functools
import json
import logging
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from ..files.atomic import named_errors
from ..files.metrics import end_last_line

logger = logging.getLogger(__name__)


class NewScalars:
    """The scalars that a writer has not written yet, also of iterations of which it has written others.

    Detectron2's writers write all scalars of an iteration at once. Here the line of a step is written before its
    checkpoint, and an evaluation after it. If a kill between checkpoint and line were possible, a resumed run would
    never log that step.
    """

    def __init__(self, window: int) -> None:
        """
        Args:
            window: iterations over which noisy scalars are smoothed.
        """
        self._window = window
        self._written: dict[str, int] = {}

    def __call__(self) -> Iterator[tuple[str, float, int]]:
        """
        Yields:
            Name, value and iteration of each new scalar.
        """
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window).items():
            if iteration > self._written.get(name, -1):
                self._written[name] = iteration
                yield name, value, iteration


class MetricsWriter(JSONWriter):
    """Detectron2's writer of metrics.json. It first ends a line that a kill cut short, and errors name the file.

    Scalars that are known only after an iteration's line has been written, as those of an evaluation, get a line of
    their own.
    """

    def __init__(self, path: str | Path, **kwargs: Any) -> None:
        """
        Args:
            path: metrics.json; lines are appended.
            kwargs: as Detectron2's.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        self.path = path
        with named_errors(path):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            end_last_line(path)
            super().__init__(str(path), **kwargs)
        self._new, self._last_write = NewScalars(self._window_size), math.inf  # Detectron2's code has nothing left

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = {}
        for name, value, iteration in self._new():
            lines.setdefault(iteration, {"iteration": iteration})[name] = value
        with named_errors(self.path):
            self._file_handle.writelines(json.dumps(line, sort_keys=True) + "\n" for line in lines.values())
            super().write()  # flushes to the disk

    def close(self) -> None:
        with named_errors(self.path):
            super().close()


class LinesFirst(hooks.PeriodicWriter):
    """Writes the lines of a step before its checkpoint. The hook after the checkpoint closes the writers."""

    def after_train(self) -> None:
        pass


class TensorboardWriter(TensorboardXWriter):
    """Detectron2's writer of TensorBoard files; errors name their folder.

    TensorBoard writes in a thread. Its next call raises the thread's error again, so the thread's own traceback is not
    printed.
    """

    def __init__(self, log_dir: str, **kwargs: Any) -> None:
        """
        Args:
            log_dir: folder of the files.
            kwargs: as Detectron2's.
        """
        super().__init__(log_dir, **kwargs)
        self._new, self._last_write = NewScalars(self._window_size), math.inf  # Detectron2's code has nothing left
        _leave_errors_to_next_call()

    def write(self) -> None:
        with named_errors(self._place):
            for name, value, iteration in self._new():
                self._writer.add_scalar(name, value, iteration)
            super().write()  # images and histograms

    def close(self) -> None:
        with named_errors(self._place):
            super().close()

    @property
    def _place(self) -> str:
        return os.path.join(self._writer_args["log_dir"], "events.out.tfevents.*")


def _leave_errors_to_next_call() -> None:
    default = threading.excepthook
    if getattr(default, "of_tensorboard", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            default(args)

    hook.of_tensorboard = True  # type: ignore[attr-defined]  # mypy knows no attributes of functions
    threading.excepthook = hook


class MetricPrinter(CommonMetricPrinter):
    """Detectron2's line on the terminal, once per iteration: a second one right after it could not tell the time."""

    _written: int | None = None

    def write(self) -> None:
        if get_event_storage().iter != self._written:
            self._written = get_event_storage().iter
            super().write()


class TerminalWriter(EventWriter):
    """Logs one line: ETA, iteration, losses, learning rate, images per second."""

    def __init__(self, max_iter: int) -> None:
        """
        Args:
            max_iter: iterations in the run.
        """
        self._eta = functools.partial(CommonMetricPrinter._get_eta, CommonMetricPrinter(max_iter))
        self.max_iter = max_iter
        self.written: int | None = None

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self.written or storage.latest().get("lr", (0, -1))[1] != storage.iter:
            return  # the line is logged already, or the step has failed
        self.written = storage.iter
        smooth = {name: history.median(20) for name, history in storage.histories().items()}
        latest = {name: entry for name, entry in storage.latest_with_smoothing_hint(20).items() if "loss" in name}
        newest = max((iteration for _, iteration in latest.values()), default=None)  # not those of an earlier unit
        losses = "  ".join(f"{name}: {value:.4f}" for name, (value, iteration) in latest.items() if iteration == newest)
        logger.info(
            f"eta: {self._eta(storage) or 'unknown'}  iter: {storage.iter + 1}/{self.max_iter}  {losses}  "
            f"lr: {storage.history('lr').latest():.5g}  {smooth['images_per_second']:.1f} images/s  "
            f"data_time: {smooth['data_time']:.3f}"
        )

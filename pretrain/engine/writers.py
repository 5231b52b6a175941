"""What a run's scalars are written with, alike for all kinds of runs; metrics.py reads them without Detectron2."""

import functools
import json
import logging
import math
import os
import threading

from detectron2.engine import hooks
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from ..files.atomic import named_errors
from ..files.metrics import end_last_line

logger = logging.getLogger(__name__)


class NewScalars:
    """The scalars of an iteration that a writer has not written yet, also if it has written others of that iteration.

    Detectron2's writers have it that all of an iteration's are known when the first are written. Here the line of a
    step is written before its checkpoint: a process that is killed between them must not leave a checkpoint from which
    a run goes on behind what was never logged.
    """

    def __init__(self, window):
        """
        Args:
            window: iterations that noisy scalars are smoothed over.
        """
        self._window, self._written = window, {}

    def __call__(self):
        """
        Yields:
            tuple: name, value, iteration; once each.
        """
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window).items():
            if iteration > self._written.get(name, -1):
                self._written[name] = iteration
                yield name, value, iteration


class MetricsWriter(JSONWriter):
    """Detectron2's writer of metrics.json; half a line that a kill has left is ended first; errors name the file.

    What is found after an iteration's line has been written, as an evaluation's figures are, gets a line of its own.
    """

    def __init__(self, path, **kwargs):
        """
        Args:
            path: of metrics.json; appended to.
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

    def write(self):
        lines = {}
        for name, value, iteration in self._new():
            lines.setdefault(iteration, {"iteration": iteration})[name] = value
        with named_errors(self.path):
            self._file_handle.writelines(json.dumps(line, sort_keys=True) + "\n" for line in lines.values())
            super().write()  # brings them down to the disk

    def close(self):
        with named_errors(self.path):
            super().close()


class LinesFirst(hooks.PeriodicWriter):
    """Writes the lines of a step before its checkpoint; whoever comes behind the checkpoint closes the writers."""

    def after_train(self):
        pass


class TensorboardWriter(TensorboardXWriter):
    """Detectron2's; errors name the folder of its files.

    TensorBoard writes in a thread, whose error the next call raises again: Python's traceback of it is left out.
    """

    def __init__(self, log_dir, **kwargs):
        """
        Args:
            log_dir: folder of the files.
            kwargs: as Detectron2's.
        """
        super().__init__(log_dir, **kwargs)
        self._new, self._last_write = NewScalars(self._window_size), math.inf  # Detectron2's code has nothing left
        _leave_errors_to_next_call()

    def write(self):
        with named_errors(self._place):
            for name, value, iteration in self._new():
                self._writer.add_scalar(name, value, iteration)
            super().write()  # pictures and histograms

    def close(self):
        with named_errors(self._place):
            super().close()

    @property
    def _place(self):
        return os.path.join(self._writer_args["log_dir"], "events.out.tfevents.*")


def _leave_errors_to_next_call():
    default = threading.excepthook
    if getattr(default, "of_tensorboard", False):
        return

    def hook(args):
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            default(args)

    hook.of_tensorboard = True
    threading.excepthook = hook


class MetricPrinter(CommonMetricPrinter):
    """Detectron2's line on the terminal, once an iteration: of a second one right after it no time can be told."""

    _written = None

    def write(self):
        if get_event_storage().iter != self._written:
            self._written = get_event_storage().iter
            super().write()


class TerminalWriter(EventWriter):
    """One line: ETA, iteration, losses, learning rate, images a second."""

    def __init__(self, max_iter):
        self._eta = functools.partial(CommonMetricPrinter._get_eta, CommonMetricPrinter(max_iter))
        self.max_iter, self.written = max_iter, None

    def write(self):
        storage = get_event_storage()
        if storage.iter == self.written or storage.latest().get("lr", (0, -1))[1] != storage.iter:
            return  # it is reported already, or the step came to nothing
        self.written = storage.iter
        smooth = {name: history.median(20) for name, history in storage.histories().items()}
        losses = "  ".join(f"{name}: {value:.4f}" for name, value in smooth.items() if "loss" in name)
        logger.info(
            f"eta: {self._eta(storage) or 'unknown'}  iter: {storage.iter + 1}/{self.max_iter}  {losses}  "
            f"lr: {storage.history('lr').latest():.5g}  {smooth['images_per_second']:.1f} images/s  "
            f"data_time: {smooth['data_time']:.3f}"
        )

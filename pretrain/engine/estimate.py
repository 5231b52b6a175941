"""How long a run takes: a warning before one that is sized for GPUs, and one line after its first iterations."""

import logging
import statistics
import time

from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)
ENOUGH = 10.0  # seconds of iterations that tell how long they are; two iterations at least
TOO_LONG = 5.0  # seconds; the steps of a recipe for a CPU take less


def warning_of_size(device, images, height, width, seconds, config):
    """What to say before a run whose steps are sized for GPUs starts on a CPU.

    Args:
        device: as MODEL.DEVICE.
        images: in a step, over all processes.
        height, width: of an image, in pixels.
        seconds: that two CPU cores take for a million pixels, as measured with a ResNet-50.
        config: file of a recipe for a CPU.

    Returns:
        str: one line; None on other devices, and for steps that a CPU can do.
    """
    step = images * height * width / 1e6 * seconds
    if not device.startswith("cpu") or step <= TOO_LONG:
        return None
    return (
        f"this recipe is sized for GPUs: with a ResNet-50, two CPU cores take about {duration(step)} for a step of "
        f"{images} images of {height} x {width} pixels. A recipe for a CPU: --config-file {config}"
    )


class TimeEstimate(HookBase):
    """Says once, after the first seconds, how long the run takes; nothing in runs that are over by then."""

    def __init__(self, device, extras=()):
        """
        Args:
            device: where it runs, in a word.
            extras: what else takes time until the end, as pairs of a name and how many iterations take as long.
        """
        self.device, self.extras = device, [(name, count) for name, count in extras if count]

    def before_train(self):
        self.times, self.last = [], None

    def after_step(self):
        if self.times is None:
            return
        now = time.perf_counter()
        if self.last is not None:  # the first iteration also starts loaders and chooses kernels
            self.times.append(now - self.last)
        self.last = now
        if len(self.times) >= 2 and sum(self.times) >= ENOUGH:
            if comm.is_main_process():
                logger.info(self._text(statistics.median(self.times)))
            self.times = None

    def _text(self, seconds):
        trainer = self.trainer
        iterations = trainer.max_iter - trainer.start_iter
        parts = [f"{name} (about {duration(count * seconds)})" for name, count in self.extras]
        total = seconds * (iterations + sum(count for _, count in self.extras))
        return (
            f"about {duration(total)} for {'the last ' if trainer.start_iter else ''}{iterations} iterations at "
            f"{duration(seconds)} each{', with '.join(['', ' and '.join(parts)]) if parts else ''} on {self.device}"
        )


def times_due(start, end, period):
    """How often something is done that is due every ``period`` iterations (0: never) and after the last.

    Args:
        start, end: iterations that are done before the run, and at its end.
        period: between two times.
    """
    return (end // period - start // period if period else 0) + (not period or end % period != 0)


def duration(seconds):
    """In one or two units, to two figures or so: 0.31 s, 2.2 s, 45 s, 17 min, 3 h 20 min, 12 days."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 2 * 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 60 / 24:.0f} days"

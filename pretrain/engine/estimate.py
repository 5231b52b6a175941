"""Duration of a run: a warning before one that is sized for GPUs, and an estimate after its first iterations."""

import logging
import statistics
import time
from collections.abc import Iterable

from detectron2.engine import HookBase
from detectron2.utils import comm

from .sequential import Turns

logger = logging.getLogger(__name__)
ENOUGH = 10.0  # seconds of iterations, two at least, before their duration is estimated
TOO_LONG = 5.0  # seconds; steps of the configs for a CPU take less


def warning_of_size(device: str, images: int, height: int, width: int, seconds: float, config: str) -> str | None:
    """A warning of a run on a CPU whose steps are sized for GPUs.

    Args:
        device: MODEL.DEVICE.
        images: images in a step, over all processes.
        height: of an image, in pixels.
        width: of an image, in pixels.
        seconds: duration of a million pixels on two CPU cores, measured with a ResNet-50.
        config: file of a config for a CPU, which the warning names.

    Returns:
        One line; None on other devices, and for steps that are short enough on a CPU.
    """
    step = images * height * width / 1e6 * seconds
    if not device.startswith("cpu") or step <= TOO_LONG:
        return None
    return (
        f"this recipe is sized for GPUs: with a ResNet-50, two CPU cores take about {duration(step)} for a step of "
        f"{images} images of {height} x {width} pixels. A recipe for a CPU: --config-file {config}"
    )


class TimeEstimate(HookBase):
    """Logs once, after the first seconds, how long the run takes; nothing in runs that are shorter.

    Of units that learn one after the other, whose iterations differ, it logs how long each turn takes.
    """

    def __init__(self, device: str, extras: Iterable[tuple[str, float]] = (), turns: Turns | None = None) -> None:
        """
        Args:
            device: for the log line, such as "cpu".
            extras: other work until the end of the run: name, and duration in iterations.
            turns: of the units that learn one after the other; None: all at once.
        """
        self.device, self.extras = device, [(name, count) for name, count in extras if count]
        self.turns = turns

    def before_train(self) -> None:
        self.times: list[float] | None = []  # None: the line is logged
        self.last: float | None = None
        self.first = self.trainer.start_iter

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.turns and self.turns.begins_at(done):
            self.times, self.last, self.first = [], None, done
            return
        if self.times is None:
            return
        now = time.perf_counter()
        if self.last is not None:  # the first iteration is slower: it starts loaders and chooses kernels
            self.times.append(now - self.last)
        self.last = now
        if len(self.times) >= 2 and sum(self.times) >= ENOUGH:
            if comm.is_main_process():
                logger.info(self._text(statistics.median(self.times)))
            self.times = None

    def _text(self, seconds: float) -> str:
        trainer = self.trainer
        if self.turns:
            iterations = self.turns.stop_of(trainer.iter) - self.first
            extras = "".join(f", without {name}," for name, _ in self.extras)
            return (
                f"about {duration(seconds * iterations)} for {iterations} iterations of the unit of "
                f"{self.turns.unit_at(trainer.iter)} at {duration(seconds)} each{extras} on {self.device}"
            )
        iterations = trainer.max_iter - trainer.start_iter
        parts = [f"{name} (about {duration(count * seconds)})" for name, count in self.extras]
        total = seconds * (iterations + sum(count for _, count in self.extras))
        return (
            f"about {duration(total)} for {'the last ' if trainer.start_iter else ''}{iterations} iterations at "
            f"{duration(seconds)} each{', with '.join(['', ' and '.join(parts)]) if parts else ''} on {self.device}"
        )


def times_due(start: int, end: int, period: int) -> int:
    """How often something happens that is due every ``period`` iterations and after the last one.

    Args:
        start: iterations done before the run.
        end: iterations done at its end.
        period: in iterations; 0: only after the last one.
    """
    return (end // period - start // period if period else 0) + (not period or end % period != 0)


def duration(seconds: float) -> str:
    """A duration as text, to about two digits: 0.31 s, 2.2 s, 45 s, 17 min, 3 h 20 min, 12 days."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 2 * 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 60 / 24:.0f} days"

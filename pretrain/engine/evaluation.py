"""When a readout is tested, while it or its encoder is trained."""

from collections.abc import Callable
from typing import NamedTuple

from detectron2.engine import hooks
from torch import nn


class EncoderEvaluator(NamedTuple):
    """How a trainer measures its encoder while it learns. The trainer does not know what is measured.

    Attributes:
        name: in the log, "kNN".
        period: epochs between two evaluations.
        images: number of images that the encoder sees in each.
        evaluate: function of the encoder to a dict from names of figures to figures; every process calls it.
    """

    name: str
    period: float
    images: int
    evaluate: Callable[[nn.Module], dict]


class Evaluation(hooks.EvalHook):
    """Evaluates every ``period`` iterations and in the last one, and has each evaluation written at once.

    Detectron2's evaluates after the last iteration, in curves a step beyond the end; and what it finds between two
    lines of metrics.json replaces what it has found there before.
    """

    def __init__(self, period, function, writers, stop):
        """
        Args:
            period, function: as Detectron2's.
            writers: EventWriters that write scalars once only.
            stop: the trainer's :class:`StopOnSigterm`.
        """
        super().__init__(period, function, eval_after_train=False)
        self.writers, self.stop = writers, stop

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            with self.stop.at_once():
                self._do_eval()
            for writer in self.writers:
                writer.write()

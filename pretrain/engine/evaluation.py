"""Evaluation during training, of a readout or of an encoder."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from detectron2.engine import hooks
from detectron2.utils.events import EventWriter
from torch import nn

from ..processes.sigterm_hook import StopOnSigterm


class EncoderEvaluator(NamedTuple):
    """An evaluation of the encoder during pretraining.

    Attributes:
        name: for the log, such as "kNN".
        period: epochs between two evaluations.
        images: number of images that an evaluation passes through the encoder.
        evaluate: from the encoder to metrics by name, possibly nested; called in every process.
    """

    name: str
    period: float
    images: int
    evaluate: Callable[[nn.Module], dict[str, Any]]


class Evaluation(hooks.EvalHook):
    """Evaluates every ``period`` iterations and in the last one, and writes the metrics at once.

    Detectron2's EvalHook evaluates after the last iteration, which puts a point beyond the end of the curves; and of
    several evaluations between two lines of metrics.json it keeps only the last.
    """

    def __init__(
        self,
        period: int,
        function: Callable[[], dict[str, Any]],
        writers: Iterable[EventWriter],
        stop: StopOnSigterm,
    ) -> None:
        """
        Args:
            period: iterations between two evaluations.
            function: evaluates, and returns metrics by name, possibly nested.
            writers: writers that write each scalar only once.
            stop: the trainer's.
        """
        super().__init__(period, function, eval_after_train=False)
        self.writers, self.stop = writers, stop

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            with self.stop.at_once():
                self._do_eval()
            for writer in self.writers:
                writer.write()

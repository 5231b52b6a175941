"""When a readout is tested, while it or its encoder is trained."""

from detectron2.engine import hooks


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

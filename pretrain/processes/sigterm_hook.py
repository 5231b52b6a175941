"""SIGTERM in training, which clusters send before they reclaim a machine: a checkpoint and an orderly end."""

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from .distributed import any_process
from .signals import Terminated
from .sigterm import stop_at_once

logger = logging.getLogger(__name__)


class StopOnSigterm(HookBase):
    """Ends a training after SIGTERM with a checkpoint and exit code 0: after the current iteration, or at once in the
    long work that follows it.

    Register it before the hooks that do long work, which they do inside :meth:`at_once`.

    Attributes:
        ended: SIGTERM has ended long work; no other may begin.
        saves_everywhere: whether all processes have to save together.
    """

    saves_everywhere = False

    trainer: Any  # TrainerBase with a checkpointer

    def __init__(self, checkpoint_period: int | None = None) -> None:
        """
        Args:
            checkpoint_period: iterations between the checkpoints that are kept; others, written only for long work,
                are removed when there is a newer one. None: the checkpointer removes old checkpoints itself.
        """
        self.period = checkpoint_period
        self.received = self.ended = False
        self.temporary: str | None = None  # a checkpoint written only for long work

    def _receive(self, *_: object) -> None:
        self.received = True

    def before_train(self) -> None:
        self.previous = signal.signal(signal.SIGTERM, self._receive)

    def after_step(self) -> None:
        self._remove_temporary()
        iteration = self.trainer.iter
        if iteration + 1 < self.trainer.max_iter and self._ends_here():  # the last one saves anyway
            if comm.is_main_process() or self.saves_everywhere:
                self.trainer.checkpointer.save(_name(iteration), iteration=iteration)
            self._say(iteration)
            raise Terminated(0)

    def _ends_here(self) -> bool:
        """Whether the iteration at hand is the last one, the same answer in all processes."""
        return any_process(self.received)

    def after_train(self) -> None:
        self._remove_temporary()
        signal.signal(signal.SIGTERM, self.previous)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A context for long work between iterations, which SIGTERM ends at once.

        A checkpoint of the last iteration is written before, unless there is one.

        Raises:
            Terminated: after SIGTERM, with exit code 0.
        """
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        if comm.is_main_process() or self.saves_everywhere:
            self._save(iteration)
        try:
            with stop_at_once(functools.partial(self._say, iteration), 0):
                if any_process(self.received):
                    raise Terminated(0)
                yield
        except Terminated:
            self.ended = True
            raise

    def _save(self, iteration: int) -> None:
        checkpointer, last = self.trainer.checkpointer, iteration + 1 == self.trainer.max_iter
        if self._newest() in (f"{_name(iteration)}.pth", "model_final.pth" if last else None):
            return
        checkpointer.save(_name(iteration), iteration=iteration)
        self._remove_temporary()
        if self.period and (iteration + 1) % self.period:
            self.temporary = checkpointer.get_checkpoint_file()

    def _newest(self) -> str:
        return os.path.basename(self.trainer.checkpointer.get_checkpoint_file())

    def _remove_temporary(self) -> None:
        if self.temporary and self._newest() != os.path.basename(self.temporary):
            with contextlib.suppress(FileNotFoundError):  # the checkpointer may have removed it
                os.remove(self.temporary)
            self.temporary = None

    @staticmethod
    def _say(iteration: int) -> None:
        logger.info(f"SIGTERM: checkpoint written after iteration {iteration}; go on with --resume")


def _name(iteration: int) -> str:
    return f"model_{iteration:07d}"

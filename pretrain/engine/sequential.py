"""Units that learn one after the other (SOLVER.SEQUENTIAL): whose turn it is, and the learning rate of each turn."""

import bisect
from collections.abc import Sequence

from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import ParamScheduler

from ..learning.learner import LocalLearner


class Turns:
    """Which unit learns in which iteration. Turns are equal to an iteration, from the image upwards.

    Attributes:
        units: names of the units.
        starts: the first iteration of each turn.
        max_iter: iterations in the run.
    """

    def __init__(self, units: Sequence[str], max_iter: int) -> None:
        """
        Args:
            units: names of the units, lowest first.
            max_iter: iterations in the run, at least one for each unit.
        """
        self.units, self.max_iter = list(units), max_iter
        self.starts = [round(k * max_iter / len(self.units)) for k in range(len(self.units))]

    def unit_at(self, iteration: int) -> str:
        """Name of the unit that learns in an iteration."""
        return self.units[bisect.bisect_right(self.starts, iteration) - 1]

    def begins_at(self, iteration: int) -> bool:
        """Whether an iteration is the first one of a turn."""
        return iteration in self.starts

    def stop_of(self, iteration: int) -> int:
        """The iteration after the last one of the turn that an iteration is in."""
        return next((start for start in self.starts if start > iteration), self.max_iter)


class TurnsScheduler(ParamScheduler):
    """A schedule that begins anew with each turn."""

    def __init__(self, schedule: ParamScheduler, turns: Turns) -> None:
        """
        Args:
            schedule: of a turn.
            turns: of the run.
        """
        self.schedule, self.turns = schedule, turns

    def __call__(self, where: float) -> float:
        """The factor of the learning rate; ``where`` is the share of the run that is done, 0 to 1."""
        iteration = round(where * self.turns.max_iter)
        last = min(iteration, self.turns.max_iter - 1)  # the rate is asked for once more after the last iteration
        start = self.turns.starts[bisect.bisect_right(self.turns.starts, last) - 1]
        return self.schedule((iteration - start) / (self.turns.stop_of(last) - start))


def turns_of(cfg: CfgNode, learner: LocalLearner, max_iter: int) -> Turns | None:
    """The turns of a run; None if all units learn at once.

    Args:
        cfg: the pretraining config.
        learner: built from it.
        max_iter: iterations in the run.

    Raises:
        ValueError: if the units cannot learn one after the other, or there are fewer iterations than units.
    """
    if not cfg.SOLVER.SEQUENTIAL:
        return None
    units = list(learner.plan.sections)
    if len(units) < 2:
        raise ValueError(f"SOLVER.SEQUENTIAL needs several units that take turns, but there is {units or 'none'}")
    learner.refuse_turns()
    if max_iter < len(units):
        raise ValueError(f"{max_iter} iterations are fewer than {len(units)} units (SOLVER.SEQUENTIAL): more EPOCHS")
    return Turns(units, max_iter)

"""Evaluation on several test sets, of which one that fails does not take the others along."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from .outputs import PREDICTIONS
from .problems import recorded


@dataclass
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        results: task ("bbox", "segm") -> metric -> percent; with several test sets, data set -> task -> metric ->
            percent.
        seconds: its duration.
        problems: what has failed, a line each.
    """

    results: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def evaluate_each(cfg: CfgNode, model: nn.Module, test: Callable[[CfgNode, nn.Module], dict[str, Any]]) -> Evaluation:
    """Evaluate a detector on every data set of DATASETS.TEST, one after the other.

    A data set that fails gets no results and a line in ``problems``. In several processes it raises instead, because
    the other processes would wait for this one.

    Args:
        cfg: the config.
        model: the detector; its mode, training or eval, stays.
        test: as ``DefaultTrainer.test``; called with a config that has one test set.
    """
    done, begun, training = Evaluation(), time.perf_counter(), model.training
    for name in cfg.DATASETS.TEST:
        alone = cfg.clone()
        alone.defrost()
        alone.DATASETS.TEST = (name,)
        done.results[name] = {}
        step = recorded(done.problems, f"evaluation on {name}")
        with step if comm.get_world_size() == 1 else contextlib.nullcontext():
            # The analysis would take those of an earlier evaluation, or of another data set, for this one's
            Path(cfg.OUTPUT_DIR, PREDICTIONS).unlink(missing_ok=True)
            done.results[name] = test(alone, model)
        model.train(training)  # after a failure Detectron2 leaves the model in eval mode and then refuses to train it
    if len(done.results) == 1:
        (done.results,) = done.results.values()
    done.seconds = time.perf_counter() - begun
    return done

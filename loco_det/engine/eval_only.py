"""Evaluation of a detector without training it."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from .checkpoint import GuardedCheckpointer
from .evaluate import evaluate_each
from .outputs import finish
from .trainer import Trainer


def evaluate(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Evaluate a detector on DATASETS.TEST, and write results.json and pictures, as ``train_net.py --eval-only``.

    Args:
        cfg: the config.
        resume: evaluate the newest checkpoint in OUTPUT_DIR instead of MODEL.WEIGHTS.

    Returns:
        The results, as :attr:`Evaluation.results`.

    Raises:
        FileNotFoundError, ValueError: if the weights are missing or do not fill the whole detector.
        UnfinishedRun: if a part of evaluation, analysis or pictures has failed.
    """
    model = Trainer.build_model(cfg)
    state: dict[str, Any] = {}
    checkpointer = GuardedCheckpointer(model, cfg.OUTPUT_DIR)
    checkpointer.required = ""
    if resume:
        state = checkpointer.resume()
    elif cfg.MODEL.WEIGHTS != "random":
        state = checkpointer.load(cfg.MODEL.WEIGHTS)
    done = evaluate_each(cfg, model, Trainer.test)
    if comm.is_main_process():
        finish(cfg, model, done.results, state, done.seconds, done.problems, resume)
    return done.results

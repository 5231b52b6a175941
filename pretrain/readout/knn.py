"""Weighted kNN accuracy of every stage (Wu et al. 2018, arXiv 1805.01978).

No random numbers are drawn, so that an evaluation does not change a run.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import nn

from ..engine.evaluation import EncoderEvaluator
from .features import PooledEncoder, pooled_features
from .labelled import Labelled, labelled_splits

logger = logging.getLogger(__name__)
SIMILARITIES = 2**26  # maximum number of similarities in memory: 256 MB


def knn_predict(
    queries: torch.Tensor,
    bank: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    k: int,
    temperature: float,
    own: torch.Tensor | None = None,
) -> torch.Tensor:
    """Classify by a weighted vote of the nearest neighbours (Wu et al. 2018, arXiv 1805.01978, Sec. 3.4).

    Each of the ``k`` neighbours with the largest cosine votes for its class with weight exp(cosine / temperature).
    Of classes with equal scores the first one wins.

    Args:
        queries: (Q, C) L2-normalised features.
        bank: (N, C) L2-normalised features of the neighbours.
        labels: (N,) long, their classes.
        num_classes: number of classes.
        k: number of neighbours that vote; if there are fewer, all vote.
        temperature: above 0; the smaller, the more the nearest neighbours count.
        own: (Q,) long, the row of ``bank`` that is the query itself and has no vote; None: the queries are not in it.

    Returns:
        (Q, min(5, num_classes)) long, the classes with the best scores, best first; -1 where no further class has a
        vote.

    Raises:
        ValueError: if there is no neighbour.
    """
    k = min(k, len(bank) - (own is not None))
    if k < 1:
        raise ValueError("kNN needs at least one neighbour")
    ranked = [labels.new_empty(0, min(5, num_classes))]
    rows = max(1, min(1024, SIMILARITIES // len(bank)))
    for first in range(0, len(queries), rows):
        similarity = queries[first : first + rows] @ bank.T
        if own is not None:
            similarity.scatter_(1, own[first : first + rows, None], -torch.inf)
        nearest, index = similarity.topk(k)
        votes = ((nearest - nearest[:, :1]) / temperature).exp()  # that of the nearest is 1, so that none overflows
        scores = votes.new_zeros(len(votes), num_classes).scatter_add_(1, labels[index], votes)
        scores, classes = (part[:, :5] for part in scores.sort(dim=1, descending=True, stable=True))
        ranked.append(classes.masked_fill(scores == 0, -1))
    return torch.cat(ranked)


def warn_of_k(ks: Iterable[int], neighbours: int) -> None:
    """Warn of each K in ``ks`` above the number of neighbours; in :func:`knn_predict` all of them vote then."""
    for k in ks:
        if k > neighbours:
            logger.warning(f"KNN.K {k} is above the number of training images that can vote, {neighbours}: all vote")


def knn_of_features(
    bank: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    queries: Mapping[str, torch.Tensor] | None,
    truth: torch.Tensor,
    num_classes: int,
    k: int,
    temperature: float,
    device: str = "cpu",
) -> dict[str, dict[str, float]]:
    """kNN accuracy of each stage.

    Args:
        bank: stage name -> (N, C) features of the neighbours, not normalised.
        labels: (N,) long, their classes.
        queries: stage name -> (Q, C) features to classify; None: each row of ``bank`` is classified by the others.
        truth: (Q,) long, their classes; ignored without ``queries``.
        num_classes: number of classes.
        k: as in :func:`knn_predict`.
        temperature: as in :func:`knn_predict`.
        device: of the computation.

    Returns:
        Stage name -> {"top1": percent}, with "top5" if there are more than 5 classes; NaN for a stage whose features
        are not finite.
    """
    labels = labels.to(device)
    truth = labels if queries is None else truth.to(device)
    own = torch.arange(len(truth), device=device) if queries is None else None
    results: dict[str, dict[str, float]] = {}
    for name in bank:
        b = F.normalize(bank[name].to(device))
        q = b if queries is None else F.normalize(queries[name].to(device))
        hits = knn_predict(q, b, labels, num_classes, k, temperature, own) == truth[:, None]
        known = 100 if q.isfinite().all() and b.isfinite().all() else torch.nan
        results[name] = {"top1": known * hits[:, 0].double().mean().item()}
        if num_classes > 5:
            results[name]["top5"] = known * hits.any(1).double().mean().item()
    return results


def knn_accuracies(
    encoder: nn.Module, cfg: CfgNode, splits: tuple[Labelled, Labelled | None] | None = None
) -> dict[str, dict[str, float]]:
    """kNN accuracy of each stage of an encoder, for Detectron2's EvalHook.

    Args:
        encoder: module from normalised (B, 3, H, W) to a dict of stage name -> (B, C, H', W').
        cfg: the pretraining config, with KNN.TRAIN.
        splits: result of :func:`labelled_splits`; None: the images are listed here.

    Returns:
        {"knn": {"res2-top1": percent, ...}}, of :func:`knn_of_features`; empty in all processes but process 0.

    Raises:
        FileNotFoundError, ValueError: as :func:`labelled_splits`.
        OSError: if no image is readable.
    """
    train, test = splits or labelled_splits(cfg.KNN, "KNN")
    pooled = PooledEncoder(encoder, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD).to(cfg.MODEL.DEVICE)
    bank, readable = pooled_features(pooled, train.paths, cfg)
    queries, asked = (None, readable) if test is None else pooled_features(pooled, test.paths, cfg)
    if not comm.is_main_process():
        return {}
    num_classes = len(train.class_names)
    labels, truth = torch.tensor(train.labels)[readable], torch.tensor((test or train).labels)[asked]
    figures = knn_of_features(
        bank, labels, queries, truth, num_classes, cfg.KNN.K, cfg.KNN.TEMPERATURE, cfg.MODEL.DEVICE
    )
    results = {f"{name}-{which}": value for name, tops in figures.items() for which, value in tops.items()}
    logger.info(
        f"kNN accuracy of {len(truth)} images, {num_classes} classes (%): "
        + "  ".join(f"{name}: {value:.1f}" for name, value in results.items())
    )
    return {"knn": results}


def knn_evaluator(cfg: CfgNode) -> EncoderEvaluator | None:
    """The kNN evaluation for ``pretrain.engine.trainer.Trainer``.

    Args:
        cfg: the pretraining config.

    Returns:
        None if KNN.TRAIN is empty.

    Raises:
        FileNotFoundError, ValueError: as :func:`labelled_splits`.
    """
    if not cfg.KNN.TRAIN:
        return None
    splits = labelled_splits(cfg.KNN, "KNN")
    images = sum(len(split.paths) for split in splits if split)

    def evaluate(encoder: nn.Module) -> dict[str, Any]:
        return knn_accuracies(encoder, cfg, splits)

    return EncoderEvaluator("kNN", cfg.KNN.PERIOD, images, evaluate)

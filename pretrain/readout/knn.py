"""Weighted kNN accuracy of every stage (Wu et al. 2018, arXiv 1805.01978).

Nothing is learned and no random number is drawn, so that a run goes on the same whether it is looked at or not.
"""

import logging

import torch
import torch.nn.functional as F
from detectron2.utils import comm

from ..engine.evaluation import EncoderEvaluator
from .features import PooledEncoder, pooled_features
from .labelled import labelled_splits

logger = logging.getLogger(__name__)
SIMILARITIES = 2**26  # most similarities held at a time: 256 MB


def knn_predict(queries, bank, labels, num_classes, k, temperature, own=None):
    """Classes by weighted vote of the nearest neighbours (Wu et al. 2018, arXiv 1805.01978, Sec. 3.4).

    Each of the ``k`` neighbours with the largest cosine votes for its class with weight exp(cosine / temperature).
    Of classes with the same score the first one wins.

    Args:
        queries: (Q, C) L2-normalised features.
        bank: (N, C) L2-normalised features of the neighbours.
        labels: (N,) long, their classes.
        num_classes: number of classes.
        k: neighbours that vote; if there are fewer, all do.
        temperature: above 0; the smaller, the more the nearest ones count.
        own: (Q,) long, the row of ``bank`` that is the query itself and has no vote; None: the queries are not in it.

    Returns:
        Tensor: (Q, min(5, num_classes)) long, the classes with the best scores, best first; -1 where there is no
        further class with a vote.

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
        votes = ((nearest - nearest[:, :1]) / temperature).exp()  # the nearest one's is 1: no overflow
        scores = votes.new_zeros(len(votes), num_classes).scatter_add_(1, labels[index], votes)
        scores, classes = (part[:, :5] for part in scores.sort(dim=1, descending=True, stable=True))
        ranked.append(classes.masked_fill(scores == 0, -1))
    return torch.cat(ranked)


def warn_of_k(ks, neighbours):
    """Name each K of ``ks`` that is above the number of neighbours: :func:`knn_predict` then lets all of them vote."""
    for k in ks:
        if k > neighbours:
            logger.warning(f"KNN.K {k} is above the number of training images that can vote, {neighbours}: all vote")


def knn_of_features(bank, labels, queries, truth, num_classes, k, temperature, device="cpu"):
    """kNN accuracy of every stage.

    Args:
        bank: stage name -> (N, C) features of the neighbours, of any length.
        labels: (N,) long, their classes.
        queries: stage name -> (Q, C) features to classify; None: every row of ``bank`` by the others.
        truth: (Q,) long, their classes; without ``queries`` not read.
        num_classes: number of classes.
        k, temperature: as in :func:`knn_predict`.
        device: where to compare them.

    Returns:
        dict: stage name -> {"top1": percent}, with "top5" if there are more than 5 classes; NaN for a stage whose
        features are not finite.
    """
    labels = labels.to(device)
    truth = labels if queries is None else truth.to(device)
    own = torch.arange(len(truth), device=device) if queries is None else None
    results = {}
    for name in bank:
        b = F.normalize(bank[name].to(device))
        q = b if queries is None else F.normalize(queries[name].to(device))
        hits = knn_predict(q, b, labels, num_classes, k, temperature, own) == truth[:, None]
        known = 100 if q.isfinite().all() and b.isfinite().all() else torch.nan
        results[name] = {"top1": known * hits[:, 0].double().mean().item()}
        if num_classes > 5:
            results[name]["top5"] = known * hits.any(1).double().mean().item()
    return results


def knn_accuracies(encoder, cfg, splits=None):
    """kNN accuracy of every stage of an encoder that is being pretrained, in the form that Detectron2's EvalHook takes.

    Args:
        encoder: module from normalised (B, 3, H, W) to a dict of stage name -> (B, C, H', W').
        cfg: the pretraining config, with KNN.TRAIN.
        splits: of :func:`labelled_splits`, if they are listed already.

    Returns:
        dict: {"knn": {"res2-top1": ..., "res3-top1": ...}} as of :func:`knn_of_features`. Empty in other processes than
        the first.

    Raises:
        FileNotFoundError, ValueError: as :func:`labelled_splits`.
        OSError: if not one image is readable.
    """
    train, test = splits or labelled_splits(cfg.KNN)
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


def knn_evaluator(cfg):
    """What ``pretrain.engine.trainer.Trainer`` measures while an encoder learns.

    Args:
        cfg: the pretraining config.

    Returns:
        EncoderEvaluator; None if the config asks for none (KNN.TRAIN).

    Raises:
        FileNotFoundError, ValueError: as :func:`labelled_splits`.
    """
    if not cfg.KNN.TRAIN:
        return None
    splits = labelled_splits(cfg.KNN)
    images = sum(len(split.paths) for split in splits if split)
    return EncoderEvaluator("kNN", cfg.KNN.PERIOD, images, lambda encoder: knn_accuracies(encoder, cfg, splits))

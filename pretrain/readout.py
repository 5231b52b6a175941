"""How good are an encoder's features? Weighted kNN accuracy of every stage on a labelled folder (Wu et al. 2018).

Nothing is learned and no random number is drawn, so that a run goes on the same whether it is looked at or not.
"""

import contextlib
import logging
import os
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .data import UNREADABLE, list_images, read_image
from .distributed import outlive_sigterm

logger = logging.getLogger(__name__)
BATCH_SIZE = 64  # images that go through the encoder at a time
SIMILARITIES = 2**26  # most similarities held at a time: 256 MB


class Labelled(NamedTuple):
    """Images and their classes: ``labels[i]`` is the index in ``class_names`` of the image ``paths[i]``."""

    paths: list
    labels: list
    class_names: list


def list_labelled(folder, class_names=None):
    """The images of a folder with one sub-folder for each class (the convention of torchvision's ImageFolder).

    Args:
        folder: path.
        class_names: what the labels index, of another such folder; None: the sub-folders' names in sorted order.

    Returns:
        Labelled: sorted by class and path.

    Raises:
        FileNotFoundError: if there is no such folder, no class in it, or no image in a class.
        ValueError: if a class is not in ``class_names``.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder of labelled images")
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not found:
        raise FileNotFoundError(f"{folder}: no sub-folders; labelled images lie in one sub-folder for each class")
    class_names = found if class_names is None else class_names
    unknown = [name for name in found if name not in class_names]
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise ValueError(f"{folder}: {len(unknown)} classes that the training folder does not have: {shown}")
    paths, labels = [], []
    for name in found:
        paths += list_images(os.path.join(folder, name))
        labels += [class_names.index(name)] * (len(paths) - len(labels))
    return Labelled(paths, labels, class_names)


def labelled_splits(cfg):
    """What ``KNN.TRAIN`` and ``KNN.TEST`` name: neighbours, and images to classify.

    Args:
        cfg: the KNN node of the config.

    Returns:
        tuple: (Labelled, Labelled), or (Labelled, None) if every image is to be classified by the others.

    Raises:
        FileNotFoundError, ValueError: as :func:`list_labelled`; ValueError if there is one class only.
    """
    train = list_labelled(cfg.TRAIN)
    if len(train.class_names) < 2:
        raise ValueError(f"{cfg.TRAIN}: one class only, {train.class_names[0]}; there is nothing to tell apart")
    return train, list_labelled(cfg.TEST, train.class_names) if cfg.TEST else None


def central_crop(image, size):
    """The usual view for evaluation: short side to size * 256 / 224, then the central square, antialiased.

    Args:
        image: (H, W, 3) uint8.
        size: side of the result in pixels.

    Returns:
        ndarray: (size, size, 3) uint8.
    """
    height, width = image.shape[:2]
    short, scaled = min(height, width), round(size * 256 / 224)
    y, x = (height - short) // 2, (width - short) // 2  # what is beyond this square is never seen: do not resize it
    image = image[y : y + short, x : x + short]
    how = cv2.INTER_AREA if short > scaled else cv2.INTER_LINEAR
    image = cv2.resize(image, (scaled, scaled), interpolation=how)
    margin = (scaled - size) // 2
    return image[margin : margin + size, margin : margin + size]


class _Images(Dataset):
    def __init__(self, paths, size):
        self.paths, self.size = paths, size

    def __getitem__(self, index):
        """(index, view (size, size, 3) uint8), the view None if the file is unreadable."""
        try:
            return index, central_crop(read_image(self.paths[index]), self.size)
        except UNREADABLE:
            return index, None


def _collate(samples):
    """Indices of the readable images of a batch, and their views (B, 3, H, W) uint8 in channels_last."""
    samples = [sample for sample in samples if sample[1] is not None]
    if not samples:
        return [], None
    indices, views = zip(*samples, strict=True)
    return list(indices), torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


@contextlib.contextmanager
def _evaluating(model):
    """Put a model in eval mode, and afterwards every module in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def pooled_features(encoder, paths, cfg):
    """Globally average-pooled, L2-normalised output of every stage.

    The processes take turns, a batch each, so that not a bit depends on how many there are. The features are gathered
    on process 0 only, because those of ImageNet are 20 GB for a ResNet-50; the others get nothing.

    Args:
        encoder: module from (B, 3, H, W) to a dict of stage name -> (B, C, H', W').
        paths: list of image files, the same in every process.
        cfg: the config.

    Returns:
        tuple: stage name -> (N, C) float32 on the CPU; and the (N,) indices of the readable images in ``paths``.

    Raises:
        OSError: if not one image is readable.
    """
    rank, world_size = comm.get_rank(), comm.get_world_size()
    batches = [range(i, min(i + BATCH_SIZE, len(paths))) for i in range(0, len(paths), BATCH_SIZE)]
    batches += [range(0)] * (-len(batches) % world_size)  # in the last turn every process takes part
    loader = DataLoader(
        _Images(paths, cfg.INPUT.CROP_SIZE),
        batch_sampler=batches[rank::world_size],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_collate,
        worker_init_fn=outlive_sigterm,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the workers' seed is drawn from the run's own generator
    )
    mean, std = (
        torch.tensor(value, device=cfg.MODEL.DEVICE).view(3, 1, 1)
        for value in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    features, readable = {}, []
    silent = None if comm.is_main_process() else True  # None: if there is no terminal
    with _evaluating(encoder):
        for indices, views in tqdm(loader, "pooled features", unit="batch", leave=False, disable=silent):
            batch = {}
            if indices:
                views = (views.to(cfg.MODEL.DEVICE, non_blocking=True) - mean) / std  # keeps channels_last
                for name, h in encoder(views).items():
                    batch[name] = F.normalize(h.float().mean((2, 3))).cpu()
            for part, values in comm.gather((indices, batch)):
                readable += part
                for name, value in values.items():
                    features.setdefault(name, []).append(value)
    if comm.is_main_process():
        _report_unreadable(paths, readable)
    return {name: torch.cat(parts) for name, parts in features.items()}, torch.tensor(readable, dtype=torch.long)


def _report_unreadable(paths, readable):
    unreadable = sorted(set(range(len(paths))) - set(readable))
    if len(unreadable) == len(paths):
        raise OSError(f"none of the {len(paths)} labelled images is readable, the first: {paths[0]}")
    for index in unreadable:
        logger.warning(f"unreadable image left out: {paths[index]}")
    if unreadable:
        logger.warning(f"{len(unreadable)} of {len(paths)} labelled images are unreadable and left out")


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


def knn_accuracies(encoder, cfg, splits=None):
    """kNN accuracy of every stage, in percent, in the form that Detectron2's EvalHook takes.

    Args:
        encoder: module from (B, 3, H, W) to a dict of stage name -> (B, C, H', W').
        cfg: the config, with KNN.TRAIN.
        splits: of :func:`labelled_splits`, if they are listed already.

    Returns:
        dict: {"knn": {"res2-top1": ..., "res3-top1": ...}}, with "res2-top5" if there are more than 5 classes; NaN for
        a stage whose features are not finite. Empty in other processes than the first.

    Raises:
        FileNotFoundError, ValueError: as :func:`labelled_splits`.
        OSError: if not one image is readable.
    """
    train, test = splits or labelled_splits(cfg.KNN)
    bank, readable = pooled_features(encoder, train.paths, cfg)
    queries, asked = (bank, readable) if test is None else pooled_features(encoder, test.paths, cfg)
    if not comm.is_main_process():
        return {}
    device, num_classes, results = cfg.MODEL.DEVICE, len(train.class_names), {}
    labels = torch.tensor(train.labels)[readable].to(device)
    truth = torch.tensor((test or train).labels)[asked].to(device)
    own = torch.arange(len(truth), device=device) if test is None else None
    for name in bank:
        b = bank[name].to(device)
        q = b if test is None else queries[name].to(device)
        hits = knn_predict(q, b, labels, num_classes, cfg.KNN.K, cfg.KNN.TEMPERATURE, own) == truth[:, None]
        known = 100 if q.isfinite().all() and b.isfinite().all() else torch.nan
        results[f"{name}-top1"] = known * hits[:, 0].double().mean().item()
        if num_classes > 5:
            results[f"{name}-top5"] = known * hits.any(1).double().mean().item()
    logger.info(
        f"kNN accuracy of {len(truth)} images, {num_classes} classes (%): "
        + "  ".join(f"{name}: {value:.1f}" for name, value in results.items())
    )
    return {"knn": results}

"""Pooled features of a folder of images, computed once."""

import contextlib
import hashlib
import logging
import os
import tempfile

import torch
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..files.atomic import write_whole
from ..files.safe_load import read_own
from ..processes.lifetime import start_worker
from .labelled import CentralCrops, collate_readable
from .progress import with_progress

logger = logging.getLogger(__name__)
FORMAT = "loco-det features"
BATCH_SIZE = 64  # images that go through the encoder at a time


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


class PooledEncoder(nn.Module):
    """What every readout looks at: from images as they are to the globally average-pooled output of each stage."""

    def __init__(self, encoder, mean, std, stages=(), amp=False):
        """
        Args:
            encoder: module from normalised (B, 3, H, W) to a dict of stage name -> (B, C, H', W').
            mean, std: of the pixels, three numbers each for RGB, 0 to 255.
            stages: names of those that are read; empty: all.
            amp: whether the encoder runs under bfloat16 autocast; the pooling is in float32.
        """
        super().__init__()
        self.encoder, self.stages, self.amp = encoder, list(stages), amp
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, images):
        """
        Args:
            images: (B, 3, H, W) uint8 RGB; the memory format is kept.

        Returns:
            dict: stage name -> (B, C) float32, in the order of ``stages``.

        Raises:
            ValueError: if the encoder does not have one of the stages.
        """
        images = (images - self.mean) / self.std
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            outputs = self.encoder(images)
        missing = [name for name in self.stages if name not in outputs]
        if missing:
            raise ValueError(f"MODEL.STAGES: no stage {missing[0]!r} in this encoder, which has {', '.join(outputs)}")
        return {name: outputs[name].float().mean((2, 3)) for name in self.stages or outputs}


@torch.no_grad()
def pooled_features(encoder, paths, cfg):
    """Features of the images' central crops, in eval mode.

    The processes take turns, a batch each, so that not a bit depends on how many there are. The features are gathered
    on process 0 only, because those of ImageNet are 20 GB for a ResNet-50; the others get nothing.

    Args:
        encoder: :class:`PooledEncoder` on MODEL.DEVICE.
        paths: list of image files, the same in every process.
        cfg: a config with INPUT.CROP_SIZE, DATALOADER.NUM_WORKERS and MODEL.DEVICE.

    Returns:
        tuple: stage name -> (N, C) float32 on the CPU; and the (N,) indices of the readable images in ``paths``.

    Raises:
        OSError: if not one image is readable.
    """
    rank, world_size = comm.get_rank(), comm.get_world_size()
    batches = [range(i, min(i + BATCH_SIZE, len(paths))) for i in range(0, len(paths), BATCH_SIZE)]
    batches += [range(0)] * (-len(batches) % world_size)  # in the last turn every process takes part
    loader = DataLoader(
        CentralCrops(paths, cfg.INPUT.CROP_SIZE),
        batch_sampler=batches[rank::world_size],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate_readable,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the workers' seed is drawn from the run's own generator
    )
    features, readable = {}, []
    batches = with_progress(loader, len(paths), "pooled features", silent=not comm.is_main_process())
    with _evaluating(encoder):
        for indices, views in batches:
            batch = {}
            if indices:
                pooled = encoder(views.to(cfg.MODEL.DEVICE, non_blocking=True))
                batch = {name: values.cpu() for name, values in pooled.items()}
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


def cached_features(encoder, image_lists, cfg, weights):
    """:func:`pooled_features` of several lists of images, kept in a file for the next time.

    The file is FEATURES.CACHE or OUTPUT_DIR/features.pth. What is in it counts only if it is of the same weights, crop
    and images (names, sizes and times of change) and has all stages; lists that are not in it are computed, and the
    file is written anew. Files that are not of features are left alone, but for a damaged OUTPUT_DIR/features.pth.

    Args:
        encoder: :class:`PooledEncoder` on MODEL.DEVICE.
        image_lists: list of lists of paths, the same in every process.
        cfg: the readout's config.
        weights: dict that tells the weights from others, with the key "path", which does not count, and "sha256".

    Returns:
        list: for each list of images what :func:`pooled_features` returns; in every process, mapped into memory, so
        that processes of one machine share it.

    Raises:
        OSError: if not one image of a list is readable, or the file cannot be written or, by other processes, read.
        ValueError: if a stage of MODEL.STAGES does not exist, or the file is another one than of features.
    """
    path = cfg.FEATURES.CACHE or os.path.join(cfg.OUTPUT_DIR, "features.pth")
    key = {
        **{name: str(value) for name, value in weights.items() if name != "path"},
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
        "crop": cfg.INPUT.CROP_SIZE,
        "amp": encoder.amp,
    }
    names = [digest_of(paths) for paths in image_lists]
    stored = {}
    if comm.is_main_process():
        stored = _read_cache(path, key, encoder.stages, named=bool(cfg.FEATURES.CACHE))
    known = comm.all_gather(list(stored))[0]  # process 0 decides
    if set(names) <= set(known):
        logger.info(f"features of {sum(map(len, image_lists))} images are read from {path}")
    else:
        if comm.is_main_process():
            _refuse_unwritable(path)
        for name, paths in zip(names, image_lists, strict=True):
            if name not in known:
                stored[name] = pooled_features(encoder, paths, cfg)
        if comm.is_main_process():
            stored = {name: stored[name] for name in names}
            logger.info(f"features of {sum(map(len, image_lists))} images are written to {path}")
            content = {"format": FORMAT, "key": key, "images": stored}
            write_whole(path, lambda f: torch.save(content, f))  # who has the older file mapped keeps it
        comm.synchronize()
    images = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["images"]
    features = [images[name] for name in names]
    return [({s: values[s] for s in encoder.stages or values}, readable) for values, readable in features]


def _refuse_unwritable(path):
    """Make the folder of a file, and raise the OSError that writing it would end with: now, not after the work."""
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; name another FEATURES.CACHE", path) from error


def digest_of(paths, times=True):
    """SHA-256, in hexadecimal, of the names (class and file) and sizes of images, and of their times of change."""
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        name = "/".join(path.split(os.sep)[-2:])  # class and file: the folder may have moved
        time = stat.st_mtime_ns if times else ""
        digest.update(f"{name}\0{stat.st_size}\0{time}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read_cache(path, key, stages, named):
    """What can be used of a cache file, as list's digest -> (features, readable); says why if nothing can.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not of features. Without a FEATURES.CACHE (``named``) an unreadable file is our own,
            damaged, and of no use.
    """
    if not os.path.exists(path):
        return {}
    try:
        content = read_own(path)  # its checksums, too: a flipped bit in it would be in all that is learned from it
    except ValueError as error:
        if not named:
            logger.warning(f"{path} cannot be used ({error}): the features are computed anew")
            return {}
        raise ValueError(f"{path} is not a file of features ({error}): name another FEATURES.CACHE") from None
    try:
        if content["format"] != FORMAT:
            raise KeyError
        other = sorted(name for name in {*key, *content["key"]} if content["key"].get(name) != key.get(name))
        images = {name: part for name, part in content["images"].items() if set(stages) <= part[0].keys()}
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{path} is not a file of features: name another FEATURES.CACHE") from None
    if images and not other:
        return images
    why = f"is of another {other[0]}" if other else f"has not all of {', '.join(stages)}"
    logger.warning(f"{path} {why}: the features are computed anew")
    return {}

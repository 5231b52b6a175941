"""Pooled features of images, and the file that caches them."""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import nn

from ..engine.progress import with_progress
from ..files.atomic import write_whole
from ..files.safe_load import read_own
from ..processes.loader import Loader
from .labelled import CentralCrops, collate_readable

logger = logging.getLogger(__name__)
FORMAT = "loco-det features"
BATCH_SIZE = 64  # number of images that pass through the encoder at a time
Features = dict[str, torch.Tensor]  # stage name -> (N, C)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A context with a model in eval mode; afterwards every module has its former mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class PooledEncoder(nn.Module):
    """Normalises images, and returns the globally average-pooled output of each stage."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        encoder: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        stages: Iterable[str] = (),
        amp: bool = False,
    ) -> None:
        """
        Args:
            encoder: module from normalised (B, 3, H, W) to a dict of stage name -> (B, C, H', W').
            mean: of the pixels, three numbers for RGB, 0 to 255.
            std: standard deviation of the pixels, as ``mean``.
            stages: names of the stages to read; empty: all.
            amp: whether the encoder runs under bfloat16 autocast; pooling is in float32.
        """
        super().__init__()
        self.encoder, self.stages, self.amp = encoder, list(stages), amp
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: (B, 3, H, W) uint8 RGB; the memory format is kept.

        Returns:
            Stage name -> (B, C) float32, in the order of ``stages``.

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
def pooled_features(encoder: PooledEncoder, paths: Sequence[str], cfg: CfgNode) -> tuple[Features, torch.Tensor]:
    """Features of the images' central crops, in eval mode.

    The processes compute batches in turn, so that the features do not depend on the number of processes. They are
    gathered in process 0 only, because those of ImageNet take 20 GB for a ResNet-50; the others get none.

    Args:
        encoder: on MODEL.DEVICE.
        paths: image files, the same in every process.
        cfg: a config with INPUT.CROP_SIZE, DATALOADER.NUM_WORKERS and MODEL.DEVICE.

    Returns:
        Stage name -> (N, C) float32 on the CPU; and the (N,) long indices of the readable images in ``paths``.

    Raises:
        OSError: if no image is readable.
    """
    rank, world_size = comm.get_rank(), comm.get_world_size()
    batches: list[Any] = [range(i, min(i + BATCH_SIZE, len(paths))) for i in range(0, len(paths), BATCH_SIZE)]
    batches += [range(0)] * (-len(batches) % world_size)  # every process takes part in the last turn
    loader = Loader(
        CentralCrops(paths, cfg.INPUT.CROP_SIZE),
        batch_sampler=batches[rank::world_size],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate_readable,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise the workers' seed is drawn from the run's generator
    )
    features: dict[str, list[torch.Tensor]] = {}
    readable: list[int] = []
    with _evaluating(encoder):
        for indices, views in with_progress(loader, len(paths), "pooled features", silent=not comm.is_main_process()):
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


def _report_unreadable(paths: Sequence[str], readable: Iterable[int]) -> None:
    unreadable = sorted(set(range(len(paths))) - set(readable))
    if len(unreadable) == len(paths):
        raise OSError(f"none of the {len(paths)} labelled images is readable, the first: {paths[0]}")
    for index in unreadable:
        logger.warning(f"unreadable image left out: {paths[index]}")
    if unreadable:
        logger.warning(f"{len(unreadable)} of {len(paths)} labelled images are unreadable and left out")


def cached_features(
    encoder: PooledEncoder, image_lists: Sequence[Sequence[str]], cfg: CfgNode, weights: Mapping[str, Any]
) -> list[tuple[Features, torch.Tensor]]:
    """:func:`pooled_features` of several lists of images, cached in a file.

    The file is FEATURES.CACHE or OUTPUT_DIR/features.pth. Its features are used only if weights, crop and images
    (names, sizes and modification times) are the same and no stage is missing. Missing lists are computed, and the
    file is written anew. A file without features is an error, except for a damaged OUTPUT_DIR/features.pth.

    Args:
        encoder: on MODEL.DEVICE.
        image_lists: lists of image files, the same in every process.
        cfg: the readout's config.
        weights: identifies the weights; "path" is ignored.

    Returns:
        For each list of images what :func:`pooled_features` returns; in every process, and memory-mapped, so that the
        processes of a machine share it.

    Raises:
        OSError: if no image of a list is readable, or the file cannot be written or, in other processes, read.
        ValueError: if a stage of MODEL.STAGES does not exist, or the file does not hold features.
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
    stored: dict[str, tuple[Features, torch.Tensor]] = {}
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
            write_whole(path, lambda f: torch.save(content, f))  # a process that has mapped the older file keeps it
        comm.synchronize()
    images = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["images"]
    features = [images[name] for name in names]
    return [({s: values[s] for s in encoder.stages or values}, readable) for values, readable in features]


def _refuse_unwritable(path: str) -> None:
    """Make the folder of a file; raise OSError now if the file could not be written after the work."""
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; name another FEATURES.CACHE", path) from error


def digest_of(paths: Iterable[str], times: bool = True) -> str:
    """SHA-256, in hexadecimal, of the names (class and file), sizes and modification times of images.

    Args:
        paths: image files, in this order.
        times: whether the modification times count.

    Raises:
        OSError: if a file is missing.
    """
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        name = "/".join(path.split(os.sep)[-2:])  # class and file: the folder may have moved
        time = stat.st_mtime_ns if times else ""
        digest.update(f"{name}\0{stat.st_size}\0{time}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read_cache(
    path: str, key: Mapping[str, Any], stages: Sequence[str], named: bool
) -> dict[str, tuple[Features, torch.Tensor]]:
    """The usable features in a cache file; if there are none, the log says why.

    Args:
        path: of the file.
        key: must equal the key in the file.
        stages: that are needed.
        named: whether FEATURES.CACHE names the file. If not, an unreadable file is our own and damaged, and is ignored.

    Returns:
        Digest of a list of images -> (features, readable), as :func:`pooled_features`.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it does not hold features.
    """
    if not os.path.exists(path):
        return {}
    try:
        content = read_own(path)  # also verifies its checksums
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

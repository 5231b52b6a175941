#!/usr/bin/env python3
"""Decoding and augmentation: views a second on one core, beside lightly and torchvision.

    python benchmarks/augmentation.py [--images FOLDER] [--size 224] [--count 48] [--rounds 5]
    python benchmarks/augmentation.py --images datasets/coco/val2017 --count 100

Every row starts from the same JPEG files: photographs of FOLDER made as large as ImageNet's (500 x 375, quality 90, 92
and 95 in turn), or else images with the spectrum of photographs, which are made here. The files lie in the cache, as
they would after the first epoch. One process, one thread; the rows take turns, round after round, because the machine
may be shared, and the table shows the median of the rounds and of the ratios to lightly in the same round.

lightly and torchvision return normalised float tensors; our loader returns bytes and leaves that to the device, a batch
at a time. The row "as float tensors" does it image by image, as they do. Peers that are not installed are left out.
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_image
from torchvision.transforms import v2

from benchmarks import common
from pretrain.config import get_cfg
from pretrain.data.augment import SimCLRView
from pretrain.data.device_augment import DeviceAugment
from pretrain.data.loader import TwoViews
from pretrain.files.image_folders import list_images
from pretrain.files.images import read_image

SMOKE = {"count": 2, "rounds": 1, "size": 64}
PEER = "lightly SimCLRTransform"


def made_images(count, size=(375, 500)):
    """Colour noise whose amplitude falls with the frequency about as that of photographs does (Field 1987); the files
    are as large as ImageNet's, 110 kB."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.rfftfreq(size[1]), indexing="ij")
    falling = np.maximum(np.hypot(y, x), 1 / 500) ** -1.2
    for _ in range(count):
        planes = [np.fft.irfft2(falling * np.fft.rfft2(rng.standard_normal(size)), size) for _ in range(4)]
        gray, *colours = [plane / plane.std() for plane in planes]
        image = np.stack([128 + 50 * gray + 15 * colour for colour in colours], -1)
        yield Image.fromarray(image.clip(0, 255).astype(np.uint8))


def photographs(folder, count):
    """Images of a folder, as large as ImageNet's."""
    for path in list_images(folder)[:count]:
        image = Image.fromarray(read_image(path))
        yield image.resize((500, 375) if image.width >= image.height else (375, 500), Image.Resampling.LANCZOS)


def pipelines(paths, size):
    """Name of a row of the table -> function without arguments that makes two views of every image."""
    cfg = get_cfg()
    mean, std = (torch.tensor(levels).view(3, 1, 1) for levels in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    cfg = cfg.INPUT
    cfg.CROP_SIZE = size
    ours, cropped = (TwoViews(paths, SimCLRView(cfg, colour), 0) for colour in (True, False))
    position = itertools.count()  # in the stream: seeds the augmentation
    found = {
        "ours": each(paths, lambda i: ours[next(position), i]),
        "ours, as float tensors": each(
            paths, lambda i: (torch.from_numpy(ours[next(position), i][0]).permute(0, 3, 1, 2) - mean) / std
        ),
        "ours, decoding only": each(paths, lambda i: read_image(paths[i])),
        "ours, INPUT.ON_DEVICE: loader": each(paths, lambda i: cropped[next(position), i]),
    }
    try:
        augment = DeviceAugment(cfg)
        batch = np.stack([cropped[i, i][0] for i in range(len(paths))], 1)
        batch = torch.from_numpy(batch).flatten(0, 1).permute(0, 3, 1, 2)
        found["ours, INPUT.ON_DEVICE: batch (kornia), on this CPU"] = lambda: augment(batch)
    except ValueError as error:
        print(f"left out: {error}", file=sys.stderr)
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))], 0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def torchvision(i):
        image = decode_image(paths[i], "RGB")
        return reference(image), reference(image)

    found["torchvision v2"] = each(paths, torchvision)
    try:
        from lightly.transforms import SimCLRTransform
    except ImportError:
        print("left out: lightly is not installed", file=sys.stderr)
    else:
        transform = SimCLRTransform(input_size=size)
        found[PEER] = each(paths, lambda i: transform(Image.open(paths[i]).convert("RGB")))
    return found


def each(paths, function):
    def run():
        for i in range(len(paths)):
            function(i)

    return run


def add_arguments(parser):
    parser.add_argument("--images", metavar="FOLDER", help="photographs; without it images are made")
    parser.add_argument("--size", type=int, default=224, help="side of a view, in pixels (%(default)s)")
    parser.add_argument("--count", type=int, default=48, help="images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")


def measure(args):
    torch.set_num_threads(1)
    images = photographs(args.images, args.count) if args.images else made_images(args.count)
    args.images = os.path.basename(os.path.abspath(args.images)) if args.images else None
    with tempfile.TemporaryDirectory() as folder:
        for i, image in enumerate(images):
            image.save(Path(folder) / f"{i:05d}.jpg", quality=(90, 92, 95)[i % 3])
        paths = list_images(folder)
        found = pipelines(paths, args.size)
        seconds = {name: [] for name in found}
        for number in range(args.rounds + 1):
            common.progress(f"round {number}/{args.rounds}{'' if number else ' (to warm up)'}")
            for name, pipeline in found.items():
                start = time.perf_counter()
                pipeline()
                if number:
                    seconds[name].append((time.perf_counter() - start) / len(paths))
        size = sum(os.path.getsize(path) for path in paths) / len(paths)
        return {"images": len(paths), "bytes": size, "seconds_an_image": seconds}


def markdown(record):
    settings, found, rows = record["settings"], record["results"], []
    for name, own in found["seconds_an_image"].items():
        image, peer = statistics.median(own), found["seconds_an_image"].get(PEER)
        ratio = f"{common.median_ratio(peer, own):.2f}" if peer else "-"
        rows.append([name, f"{2 / image:.0f}", f"{image * 1000:.2f}", ratio])
    kind = "photographs" if settings["images"] else "made images"
    return (
        f"{found['images']} {kind} of 500 x 375, {found['bytes'] / 1000:.0f} kB each; two views of {settings['size']} "
        f"px; median of {settings['rounds']} rounds; one thread.\n\n"
        + common.table(["pipeline", ">views/s on a core", ">ms an image", ">x lightly"], rows)
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])

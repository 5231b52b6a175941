#!/usr/bin/env python3
"""A frozen detector's backbone, training step and inference, beside stock Detectron2.

    python benchmarks/detection_step.py [--sizes 480x640 800x1216] [--images 2] [--rois 512] [--rounds 5] [--compile]

Mask R-CNN R50-FPN of configs/coco_loco_frozen.yaml with random weights, on random images of COCO's usual size with 7
objects each, which is COCO's mean. "stock" is what Detectron2's DefaultTrainer builds from the same config; "loco-det"
is what ours builds from it (loco_det/modeling/frozen.py, channels_last). Rows take turns; the table shows medians of
the rounds and of the ratios to stock in the same round. All rows have the same weights and see the same data; features
and losses are compared first.
"""

import copy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from benchmarks import common
from loco_det.config import add_loco_config
from loco_det.engine.trainer import Trainer
from loco_det.modeling.precision import train_in_bfloat16
from pretrain.processes.cpu import prepare_cpu

BFLOAT16 = "loco-det, bfloat16"  # SOLVER.AMP.ENABLED True: in training only
SMOKE = {"sizes": ["64x96"], "images": 1, "rois": 16, "rounds": 1}


def config(args, compile=False):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(common.ROOT / "configs" / "coco_loco_frozen.yaml"))
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = args.rois
    cfg.MODEL.FAST_FROZEN.COMPILE = compile
    return cfg


def batch(args, size):
    """Images with rectangles that have masks, as Detectron2's DatasetMapper gives them (bit masks)."""
    random = np.random.default_rng(0)
    height, width = size
    inputs = []
    for _ in range(args.images):
        corner = random.uniform(0, 0.7, (7, 2)) * (width, height)
        boxes = np.concatenate([corner, corner + random.uniform(0.05, 0.3, (7, 2)) * (width, height)], 1)
        masks = np.zeros((7, height, width), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
            gt_classes=torch.tensor(random.integers(0, 80, 7)),
            gt_masks=BitMasks(torch.from_numpy(masks)),
        )
        image = torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))
        inputs.append({"image": image, "instances": instances, "height": height, "width": width})
    return inputs


def models(args):
    """Name of a row -> detector, all with the same weights."""
    built = {"stock": (DefaultTrainer, False), "loco-det": (Trainer, False)}
    built[BFLOAT16] = (Trainer, False)
    if args.compile:
        built["loco-det, compiled"] = (Trainer, True)
    result, weights = {}, None
    for name, (trainer, compile) in built.items():
        cfg = config(args, compile)
        cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "BN"  # SyncBN of one process
        torch.manual_seed(0)
        model = result[name] = trainer.build_model(cfg)
        if weights is None:
            for module in model.backbone.bottom_up.modules():  # or the features explode
                if hasattr(module, "running_var"):
                    module.weight.fill_(0.7)
            weights = copy.deepcopy(model.state_dict())
        model.load_state_dict(weights)
        if name == BFLOAT16:
            train_in_bfloat16(model)
    return result


def step(model, optimizer, inputs):
    torch.manual_seed(0)  # sampling of regions
    with EventStorage():
        losses = sum(model.train()(inputs).values())
    optimizer.zero_grad()
    losses.backward()
    optimizer.step()
    return losses.item()


def add_arguments(parser):
    parser.add_argument(
        "--sizes", nargs="+", default=["480x640", "800x1216"], metavar="HxW", help="of images, in pixels"
    )
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rois", type=int, default=512, help="regions sampled of each image in training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="a third row: the backbone through torch.compile")


def measure(args):
    prepare_cpu("cpu", keep_freed_memory=True)
    rows = models(args)
    return {size: measure_size(args, rows, tuple(map(int, size.split("x")))) for size in args.sizes}


def measure_size(args, rows, size):
    inputs = batch(args, size)
    pixels = torch.stack([x["image"] for x in inputs]).float() / 64 - 2
    optimizers = {
        name: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-5) for name, model in rows.items()
    }

    def backbone(name):
        with torch.no_grad():
            return rows[name].backbone.bottom_up(pixels)

    def inference(name):
        with torch.no_grad():
            return rows[name].eval()(inputs)

    parts = {
        "backbone forward": backbone,
        "training step": lambda name: step(rows[name], optimizers[name], inputs),
        "inference": inference,
    }
    wanted, loss = backbone("stock"), step(rows["stock"], optimizers["stock"], inputs)
    equal = {}
    for name in rows:
        if name not in ("stock", BFLOAT16):
            got = backbone(name)
            worst = max(((got[k] - wanted[k]).abs().max() / wanted[k].abs().max()).item() for k in wanted)
            other = step(rows[name], optimizers[name], inputs)
            equal[name] = {"features": worst, "losses": [loss, other]}
    found = {}
    for part, run in parts.items():
        seconds = {name: [] for name in rows if part == "training step" or name != BFLOAT16}
        for round_ in range(args.rounds + 1):  # the first warms up
            common.progress(f"{size[0]} x {size[1]}, {part}, round {round_}/{args.rounds}")
            for name in seconds:
                start = time.perf_counter()
                run(name)
                if round_:
                    seconds[name].append(time.perf_counter() - start)
        found[part] = seconds
    return {"seconds": found, "equal": equal}


def markdown(record):
    settings, notes = record["settings"], []
    for size, found in record["results"].items():
        for name, one in found["equal"].items():
            losses = " and ".join(f"{x:.6f}" for x in one["losses"])
            notes.append(f"{size}, {name}: features differ by {one['features']:.1e} relative, losses {losses}")
    table = common.parts_table(record["results"], 2)
    return (
        f"{settings['images']} images, {settings['rois']} regions of each; medians of {settings['rounds']} rounds. "
        f"{'; '.join(notes)}.\n\n{table}"
    )


if __name__ == "__main__":
    common.main(sys.modules[__name__])

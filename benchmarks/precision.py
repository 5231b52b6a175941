#!/usr/bin/env python3
"""Time in float32 and in bfloat16 on this CPU: pretraining, readout, and the training of detectors.

    python benchmarks/precision.py [--rows 'pretraining, demo' ...] [--rounds 3] [--slower-cpus]

A row is the median of a few steps: forward and backward for pretraining, a whole training step of a detector, the
pooled features of 64 images for a readout. Every figure comes from a process of its own, and the rows take turns.
--slower-cpus adds a pretraining step as on CPUs without the instructions for bfloat16: oneDNN is told the newest ones
that it may use (ONEDNN_MAX_CPU_ISA).
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

# row: kind, config, pixels of an image, images
ROWS = {
    "pretraining, demo": ("pretraining", "pretrain/demo_loco", (64, 64), 64),
    "pretraining, LoCo ResNet-50": ("pretraining", "pretrain/imagenet/resnet50_loco_800ep", (128, 128), 16),
    "readout, demo's encoder": ("readout", "pretrain/demo_loco", (64, 64), 64),
    "readout, ResNet-50": ("readout", "pretrain/imagenet/resnet50_loco_800ep", (224, 224), 64),
    "frozen detector, demo": ("detection", "demo_coco_loco_frozen", (128, 160), 8),
    "fine-tuned detector, demo": ("detection", "demo_coco_loco_finetune", (128, 160), 8),
    "frozen detector, COCO": ("detection", "coco_loco_frozen", (480, 640), 2),
    "fine-tuned detector, COCO": ("detection", "coco_loco_finetune", (480, 640), 2),
}
SMOKE = {"rounds": 1, "rows": ["pretraining, demo", "fine-tuned detector, demo"], "images": 2}
CPUS = {"AVX512, no bfloat16": "AVX512_CORE_VNNI", "AVX2": "AVX2"}
STEPS = 3


def child(name, images, dtype):
    """Median seconds of a step of a row, with so many images (0: the row's)."""
    import torch

    from pretrain.processes.cpu import prepare_cpu

    prepare_cpu("cpu", keep_freed_memory=True)
    torch.manual_seed(0)
    kind, config, size, usual = ROWS[name]
    step = {"pretraining": pretraining, "readout": readout, "detection": detection}[kind](
        config, size, images or usual, dtype == "bfloat16"
    )
    found = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def pretraining(config, size, images, amp):
    import torch

    from pretrain.config import get_cfg
    from pretrain.files.shipped_configs import find_config
    from pretrain.files.yaml_files import merge_config_file
    from pretrain.learning.build import build_learner

    cfg = get_cfg()
    merge_config_file(cfg, find_config(config))
    learner = build_learner(cfg)
    views = torch.randn(2 * images, 3, *size).contiguous(memory_format=torch.channels_last)

    def step():
        with torch.autocast("cpu", torch.bfloat16, amp):
            learner.forward_backward(views)
        learner.zero_grad(set_to_none=True)

    return step


def readout(config, size, images, amp):
    import torch

    from pretrain.config import get_cfg
    from pretrain.encoders import build_encoder
    from pretrain.files.shipped_configs import find_config
    from pretrain.files.yaml_files import merge_config_file
    from pretrain.readout.features import PooledEncoder

    cfg = get_cfg()
    merge_config_file(cfg, find_config(config))
    encoder = PooledEncoder(build_encoder(cfg.MODEL.ENCODER), [127.0] * 3, [60.0] * 3, amp=amp).eval()
    encoder.to(memory_format=torch.channels_last)
    pixels = torch.randint(256, (images, 3, *size), dtype=torch.uint8)

    @torch.no_grad()
    def step():
        encoder(pixels)

    return step


def detection(config, size, images, amp):
    import argparse

    import torch
    from detectron2.config import get_cfg

    from benchmarks import detection_step
    from loco_det.config import add_loco_config
    from loco_det.engine.trainer import Trainer
    from loco_det.modeling.precision import train_in_bfloat16
    from pretrain.files.shipped_configs import find_config

    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(find_config(config))
    cfg.MODEL.DEVICE = "cpu"
    model = Trainer.build_model(cfg)
    for module in model.backbone.bottom_up.modules():  # or the features of random weights explode
        if hasattr(module, "running_var"):
            module.weight.data.fill_(0.7)
    if amp:
        train_in_bfloat16(model)
    inputs = detection_step.batch(argparse.Namespace(images=images), size)
    for one in inputs:
        one["instances"].gt_classes %= cfg.MODEL.ROI_HEADS.NUM_CLASSES
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-5)
    return lambda: detection_step.step(model, optimizer, inputs)


def add_arguments(parser):
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="default: all")
    parser.add_argument("--images", type=int, default=0, help="of a step (default: the row's)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slower-cpus", action="store_true", help="also as if this CPU had fewer instructions")


def measure(args):
    todo = [(row, "this CPU", {}) for row in args.rows]
    if args.slower_cpus:
        todo += [("pretraining, demo", cpu, {"ONEDNN_MAX_CPU_ISA": isa}) for cpu, isa in CPUS.items()]
    found = [{"row": row, "cpu": cpu, "float32": [], "bfloat16": []} for row, cpu, _ in todo]
    for number in range(args.rounds):
        for one, (row, cpu, env) in zip(found, todo, strict=True):
            for dtype in ("float32", "bfloat16"):
                common.progress(f"round {number + 1}/{args.rounds}: {row}, {cpu}, {dtype}")
                one[dtype].append(common.in_child(__file__, row, args.images, dtype, env=env))
    return found


def markdown(record):
    rows = []
    for one in record["results"]:
        middle = [f"{statistics.median(one[dtype]):.2f}" for dtype in ("float32", "bfloat16")]
        _, _, (height, width), images = ROWS[one["row"]]
        size = f"{record['settings']['images'] or images} of {height} x {width}"
        ratio = f"{common.median_ratio(one['float32'], one['bfloat16']):.2f}x"
        rows.append([one["row"], size, one["cpu"], *middle, ratio])
    heads = ["step", "images", "instructions", ">float32, s", ">bfloat16, s", ">times as fast"]
    return f"Medians of {record['settings']['rounds']} rounds of {STEPS} steps.\n\n" + common.table(heads, rows)


if __name__ == "__main__":
    common.main(sys.modules[__name__])

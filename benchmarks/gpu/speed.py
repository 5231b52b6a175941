"""Seconds and memory of a pretraining step by method, as benchmarks/pretrain_step.py measures them on a CPU.

A step is forward and backward of two views of each image, without optimiser. Its activations are what torch has
allocated at the worst moment (torch.cuda.max_memory_allocated) above the idle model with its gradients. The method's
saving is against "end to end" without a conv block.
"""

import gc
import statistics
import time
from argparse import Namespace

import torch

from benchmarks import common, pretrain_step

from .setting import Setting, synchronize

METHODS = {
    "resnet50": ["end to end", "end to end + conv block", "GIM", "GIM + conv block", "LoCo", "LoCo, recompute stem"],
    "presnet50": ["end to end", "GIM", "LoCo"],
}
PUBLISHED = {("resnet50", "GIM"): 1.81, ("resnet50", "LoCo"): 1.28, ("presnet50", "GIM"): 4.56,
             ("presnet50", "LoCo"): 2.76}  # fmt: skip
DTYPES = {"float32": False, "bfloat16": True}


def measure(setting: Setting, images: int, side: int, steps: int = 5) -> list[dict]:
    """One row for each encoder, method and data type.

    Args:
        setting: where.
        images: in a step.
        side: of a view, in pixels.
        steps: whose median is taken, after two to warm up.

    Returns:
        Rows with "seconds", "activations" and, on GPUs, "peak" in bytes; with "problem" if memory was not enough.
    """
    rows = []
    for encoder, methods in METHODS.items() if not setting.smoke else [("resnet18x0.5", METHODS["presnet50"])]:
        for method in methods:
            for dtype, bfloat16 in DTYPES.items():
                common.progress(f"{encoder}, {method}, {dtype}")
                row = {"encoder": encoder, "method": method, "dtype": dtype}
                try:
                    row |= _row(encoder, method, bfloat16, setting.device, images, side, steps)
                except torch.OutOfMemoryError:
                    row["problem"] = "out of memory"
                rows.append(row)
                gc.collect()
                if setting.device != "cpu":
                    torch.cuda.empty_cache()
    return rows


def _row(encoder: str, method: str, bfloat16: bool, device: str, images: int, side: int, steps: int) -> dict:
    torch.manual_seed(0)
    model, step = pretrain_step.build(method, Namespace(encoder=encoder, device=device))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    views = torch.randn(2 * images, 3, side, side).to(device).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.autocast(views.device.type, torch.bfloat16, enabled=bfloat16):
            step(views)
        synchronize(device)

    run()  # kernels are chosen
    if device == "cpu":
        found = {"activations": pretrain_step.live_bytes(run)}
    else:
        idle = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        peak = torch.cuda.max_memory_allocated()
        found = {"activations": peak - idle, "peak": peak}
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return {**found, "seconds": statistics.median(seconds)}


def table(rows: list[dict], images: int) -> str:
    """Markdown of the rows of :func:`measure`."""
    lines = []
    for row in rows:
        base = next(
            r for r in rows if all(r[k] == row[k] for k in ("encoder", "dtype")) and r["method"] == "end to end"
        )
        decoder = pretrain_step.rows_of(row["encoder"])[row["method"]][1]
        names = [row["encoder"], row["method"], decoder, row["dtype"]]
        if "problem" in row:
            lines.append([*names, row["problem"], *[""] * 5])
            continue
        known = "problem" not in base
        paper = PUBLISHED.get((row["encoder"], row["method"]))
        lines.append([
            *names, f"{row['seconds']:.3f}", f"{images / row['seconds']:.0f}",
            f"{row['seconds'] / base['seconds']:.2f}x" if known else "", f"{row['activations'] / 1e6:.0f}",
            f"{base['activations'] / row['activations']:.2f}x" if known else "", f"{paper:.2f}x" if paper else "",
        ])  # fmt: skip
    heads = [">s/step", ">images/s", ">time", ">activations, MB", ">memory saved", ">the paper's"]
    return common.table(["encoder", "rule", "decoder", "dtype", *heads], lines)

#!/usr/bin/env python3
"""Time, FLOPs and memory of one pretraining step, side by side: our rules, LoCo as usually written, and lightly.

    python benchmarks/pretrain_step.py [--encoders resnet50 presnet50] [--batch 32] [--size 128] [--rounds 3]
    python benchmarks/pretrain_step.py --encoders timm:vit_small_patch16_224 timm:convnext_tiny --rows "end to end" \
        "end to end + conv block" GIM "LoCo, double forward" LoCo "LoCo, recompute res2, res3" \
        --output benchmarks/results/pretrain_step_timm.json

All rows keep freed memory, as tools/pretrain.py does on a CPU (benchmarks/allocator.py shows what that is worth), but
not where memory is measured. Every figure comes from a process of its own; the rows take turns, round after round,
because the machine may be shared, and the tables show medians and ratios. A step is forward and backward of two views
of each image, without optimiser.

GFLOPs are multiply-adds, in 10^9, for one view: forward by fvcore (what runs twice counts twice; what is recomputed
does not), forward and backward together by torch's FlopCounterMode.

The activation peak is what a step adds to an idle model that has its gradients. "resident" is the process's peak of
resident memory (VmHWM), with malloc told to give every freed tensor back to the system, so that it is what the tensors
and oneDNN's workspace occupy at the worst moment. "live" is the same from the memory events of torch.profiler: what
torch's allocator has handed out, oneDNN's workspace not included, but a tensor included that BN's backward allocates
and never touches. Savings are of "resident", against "end to end" without a conv block.

CPU time is the user time of all threads: less disturbed by what else the machine does, and without the page faults that
allocating costs.

lightly's rows are its documented SimCLR loop: each view by itself through the backbone (ours: the same network),
SimCLRProjectionHead, NTXentLoss.
"""

import contextlib
import gc
import os
import statistics
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

SMOKE = {"encoders": ["resnet18x0.5"], "batch": 4, "size": 32, "steps": 1, "rounds": 1, "rows": ["end to end", "LoCo"]}
CONV, MLP = "conv block + MLP", "MLP"
# name: rule, decoder, options
ROWS = {
    "lightly SimCLR": ("lightly", MLP, {}),
    "lightly SimCLR, channels_last": ("lightly", MLP, {"channels_last": True}),
    "end to end": ("all", MLP, {}),
    "end to end + conv block": ("all", CONV, {}),
    "GIM": ("single", MLP, {}),
    "GIM + conv block": ("single", CONV, {}),
    "LoCo, double forward": ("naive", CONV, {}),
    "LoCo": ("pairs", CONV, {}),
}
# with MODEL.RECOMPUTE, chosen for each encoder
RECOMPUTE = {
    "resnet50": {
        "LoCo, recompute stem": ["res2[:1]"],
        "LoCo, recompute res2": ["res2"],
        "LoCo, recompute res2, half of res3": ["res2", "res3[:2]"],
        "LoCo, recompute res2, res3": ["res2", "res3"],
    },
    "presnet50": {
        "LoCo, recompute res4, res6": ["res4", "res6"],
        "LoCo, recompute res4, res6, first of res5, res7": ["res4", "res5[:1]", "res6", "res7[:1]"],
    },
    "timm:vit_small_patch16_224": {"LoCo, recompute res2, res3": ["res2", "res3"]},
    "timm:convnext_tiny": {"LoCo, recompute res2, res3": ["res2", "res3"]},
}
COMPILED = {
    f"{name}, compiled": (*ROWS[name][:2], {"compile": True})
    for name in ("end to end + conv block", "GIM + conv block", "LoCo")
}


def rows_of(encoder):
    """All rows of an encoder."""
    again = {name: ("pairs", CONV, {"recompute": parts}) for name, parts in RECOMPUTE.get(encoder, {}).items()}
    return {**ROWS, **again, **COMPILED}


def units_of(rule, names):
    """MODEL.UNITS of a rule for an encoder with these stages."""
    if rule == "all":
        return [list(names)]
    return [[name] for name in names] if rule == "single" else [list(pair) for pair in zip(names, names[1:])]  # noqa: B905


def naive_step(learner, views, units):
    """LoCo as it is usually written: shared stages run forward twice, one backward pass over the sum of losses."""
    stages = dict(zip(learner.encoder.stage_names, learner.encoder.stages, strict=True))
    x, total = views, 0
    for unit in units:
        h = x.detach()
        for i, name in enumerate(unit):
            h = stages[name](h)
            if i == 0:
                x = h  # the next unit's input
        total = total + learner.loss(*learner.decoders[unit[-1]](h).chunk(2))
    total.backward()


def lightly_step(encoder, hidden_dim, temperature):
    """lightly's SimCLR, as in its documentation: model and step."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from torch import nn

    from pretrain.encoders import TokenMap

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            prefix = getattr(encoder, "prefix_tokens", None)
            maps = [] if prefix is None else [TokenMap(prefix)]
            self.backbone = nn.Sequential(*encoder.stages, *maps, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = SimCLRProjectionHead(encoder.channels[-1], hidden_dim, 128)

        def forward(self, x):
            return self.head(self.backbone(x))

    model, criterion = Model(), NTXentLoss(temperature=temperature)

    def step(views):
        first, second = views.chunk(2)
        criterion(model(first), model(second)).backward()

    return model, step


def build(row, args):
    """The module and the step function of a row; ours is on ``args.device``, if there is one."""
    import torch

    from pretrain.config import get_cfg
    from pretrain.encoders import build_encoder
    from pretrain.learning.build import build_learner

    rule, decoder, options = rows_of(args.encoder)[row]
    cfg = get_cfg()
    cfg.MODEL.ENCODER, cfg.MODEL.DEVICE = args.encoder, getattr(args, "device", "cpu")
    cfg.MODEL.DECODER.CONV_BLOCKS = int(decoder == CONV)
    cfg.MODEL.RECOMPUTE, cfg.MODEL.COMPILE = options.get("recompute", []), options.get("compile", False)
    if rule == "lightly":
        encoder = build_encoder(args.encoder)
        model, step = lightly_step(encoder, cfg.MODEL.DECODER.HIDDEN_DIM, cfg.LOSS.TEMPERATURE)
        if options.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
        return model, step
    units = cfg.MODEL.UNITS = units_of(rule, build_encoder(args.encoder).stage_names)
    learner = build_learner(cfg)
    return learner, (lambda views: naive_step(learner, views, units)) if rule == "naive" else learner.forward_backward


def prepare(row, args, keep):
    """A step of a row as a function, and its module, with gradients, after a first small step."""
    import torch

    from pretrain.processes.cpu import prepare_cpu

    prepare_cpu("cpu", keep_freed_memory=keep)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model, step = build(row, args)
    last = not row.startswith("lightly") or "channels_last" in row
    layout = torch.channels_last if last else torch.contiguous_format
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step(torch.randn(4, 3, args.size, args.size).contiguous(memory_format=layout))
    return model, step, torch.randn(2 * args.batch, 3, args.size, args.size).contiguous(memory_format=layout)


def seconds(row, args, keep=True):
    """Median seconds of a step, by the clock and of the processor (user time of all threads)."""
    model, step, views = prepare(row, args, keep)
    found = []
    for _ in range(args.steps + 1):
        start, cpu = time.perf_counter(), os.times().user
        step(views)
        found.append((time.perf_counter() - start, os.times().user - cpu))
        model.zero_grad(set_to_none=False)
    clock, cpu = zip(*found[1:], strict=True)
    return {"seconds": statistics.median(clock), "cpu": statistics.median(cpu)}


def memory_and_flops(row, args):
    """Bytes at the peak of a step, and FLOPs."""
    model, step, views = prepare(row, args, keep=False)
    gc.collect()
    common.forget_peak()
    idle = common.memory("VmRSS")
    step(views)
    found = {"resident": 1e6 * (common.memory("VmHWM") - idle), "live": live_bytes(lambda: step(views))}
    return found | ({} if "compiled" in row else flops(row, model, step, args))


def live_bytes(function):
    """Largest sum of the bytes that the CPU allocator has handed out while ``function`` runs, above those before."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def flops(row, model, step, args):
    """Forward FLOPs of one view by fvcore, and those of the whole step by torch, both as multiply-adds."""
    import torch
    from fvcore.nn import FlopCountAnalysis
    from torch.utils.flop_counter import FlopCounterMode

    def count(module, x):
        found = FlopCountAnalysis(module.eval(), x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return found.total()

    x = torch.randn(1, 3, args.size, args.size)
    if hasattr(model, "encoder"):
        forward = 0
        for k, (name, stage) in enumerate(zip(model.encoder.stage_names, model.encoder.stages, strict=True)):
            twice = "double" in row and 0 < k < len(model.encoder.stages) - 1
            forward += count(stage, x) * (1 + twice)
            x = stage(x).detach()
            if name in model.decoders:
                forward += count(model.decoders[name], x)
    else:
        forward = count(model, x)
    model.train()
    views = torch.randn(4, 3, args.size, args.size)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()  # torch's own cannot follow autograd.grad
    with counter:
        step(views)
    return {"forward": forward / 1e9, "step": counter.get_total_flops() / 2 / len(views) / 1e9}


class NoModules(contextlib.nullcontext):
    """In the place of FlopCounterMode's tracker of modules: all FLOPs are "Global"."""

    parents = ("Global",)

    def __exit__(self, *_):
        return None


def add_arguments(parser):
    parser.add_argument("--encoders", nargs="+", default=["resnet50", "presnet50"])
    parser.add_argument("--batch", type=int, default=32, help="images, two views each (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="+", help="names of rows as in the table (all but the compiled ones)")
    parser.add_argument("--compiled", action="store_true", help="also the rows with torch.compile (needs a compiler)")


def child(what, row, encoder, settings):
    """One measurement of a row: its "seconds", or "memory" and FLOPs."""
    args = Namespace(encoder=encoder, **settings)
    return {"seconds": seconds, "memory": memory_and_flops}[what](row, args)


def measure(args):
    """Results of every encoder and row: memory and FLOPs once, time in every round."""
    found, settings = {}, {key: getattr(args, key) for key in ("batch", "size", "steps", "threads")}
    small = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for encoder in args.encoders:
        rows = args.rows or [row for row in rows_of(encoder) if args.compiled or row not in COMPILED]
        if unknown := set(rows) - set(rows_of(encoder)):
            raise ValueError(f"unknown rows {sorted(unknown)}: choose from {list(rows_of(encoder))}")
        own = {row: common.in_child(__file__, "memory", row, encoder, settings, env=small) for row in rows}
        own = {row: result | {"rounds": []} for row, result in own.items() if result}  # without what is not installed
        for number in range(args.rounds):
            for row in own:
                common.progress(f"{encoder}, round {number + 1}/{args.rounds}: {row}")
                own[row]["rounds"].append(common.in_child(__file__, "seconds", row, encoder, settings))
        found[encoder] = own
    return found


def median(row, key):
    return statistics.median(one[key] for one in row["rounds"])


def ratio(row, base, key):
    """Of the same round each, so that what else the machine does is in both."""
    return common.median_ratio([one[key] for one in row["rounds"]], [one[key] for one in base["rounds"]])


def markdown(record):
    settings = record["settings"]
    parts = [
        f"{settings['batch']} images (two views) of {settings['size']} px, {settings['threads']} threads; medians of "
        f"{settings['rounds']} rounds of {settings['steps']} steps."
    ]
    return "\n\n".join([*parts, *(table(encoder, rows) for encoder, rows in record["results"].items())])


def table(encoder, found):
    """Markdown, with ratios."""
    lines = []
    for row, m in found.items():
        decoder = rows_of(encoder)[row][1]
        base = found.get("end to end" if decoder == MLP else "end to end + conv block", m)
        saving = found.get("end to end", m)["resident"] / m["resident"]
        gflops = [f"{m[key]:.2f}" if key in m else "" for key in ("forward", "step")]
        times = [f"{median(m, 'seconds'):.2f}", *(f"{ratio(m, base, key):.2f}x" for key in ("seconds", "cpu"))]
        memory = [f"{m['resident'] / 1e6:.0f}", f"{saving:.2f}x", f"{m['live'] / 1e6:.0f}"]
        lines.append([row, decoder, *times, *gflops, *memory])
    heads = [">s/step", ">time", ">CPU time", ">GFLOPs forward", ">step", ">resident, MB", ">saving", ">live, MB"]
    parts = [f"**{encoder}**", common.table(["rule", "decoder", *heads], lines)]
    parts += ["Times are ratios to the end-to-end row with the same decoder. Others, by the clock, of CPU time, and of "
              "the step's FLOPs:"]  # fmt: skip
    pairs = [("LoCo", "LoCo, double forward"), ("end to end", "lightly SimCLR"),
             ("end to end", "lightly SimCLR, channels_last"), *((row, "LoCo") for row in found if "recompute" in row),
             *((f"{row}, compiled", row) for row in found)]  # fmt: skip
    others = []
    for a, b in pairs:
        if a in found and b in found:
            a, b, names = found[a], found[b], f"{a} / {b}"
            work = [a["step"] / b["step"]] if "step" in a and "step" in b else []
            others.append(
                f"- {names}: " + ", ".join(f"{x:.2f}" for x in [ratio(a, b, "seconds"), ratio(a, b, "cpu"), *work])
            )
    return "\n\n".join([*parts, "\n".join(others)] if others else parts[:-1])


if __name__ == "__main__":
    common.main(sys.modules[__name__])

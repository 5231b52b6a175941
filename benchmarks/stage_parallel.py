#!/usr/bin/env python3
"""Stages on several devices: images per second, memory and bytes sent, and a simulation of up to 64 devices.

    python benchmarks/stage_parallel.py [--encoders resnet50 presnet50] [--batch 32] [--size 128] [--rounds 3]

Every row is measured in processes of its own, of one thread each, on the CPU with gloo; the rows take turns, round
after round. A step is forward, backward and the optimiser's step (LARS) of two views of each image, without loader.

- "one process": LoCo, GIM, or SimCLR end to end, alone.
- "exact", "late": two processes that share the stages (MODEL.STAGE_PARALLEL), split by the measured times of the
  blocks.
- "two runs at once": two processes that train a network each, and send each other nothing: what the machine's cores
  give together, which share its memory and caches. No way to share one network can be faster.
- "divided batch": two processes, each with the whole network and half of the batch, that average their gradients.
- "GPipe m": SimCLR end to end with torch.distributed.pipelining.ScheduleGPipe and m micro-batches, split so that the
  blocks' forward and backward times are balanced. BN, and the loss, see a micro-batch: GPipe cannot give a loss over
  the whole batch.

Speed is that of images per second, relative to one process with the same rule. Memory is what a process has at most
beyond what it had before the model was built, with malloc told to give freed tensors back to the system.

The simulation (pretrain/learning/stage_parallel/simulation.py) uses the measured times of each block's passes, of the
optimiser's step, and the size of the activations. More devices than are best for one network share the batch, too.
Links: bandwidth in both directions at once, and a latency for each message.
"""

import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

SMOKE = {
    "encoders": ["resnet18x0.25"],
    "simulated": ["resnet18x0.25"],
    "batch": 8,
    "size": 32,
    "steps": 1,
    "rounds": 1,
    "rows": ["LoCo, one process", "LoCo, exact", "end to end, GPipe 4"],
    "devices": [2, 4],
}
ROWS = {  # name -> rule, how, processes
    "LoCo, one process": ("loco", "one", 1),
    "LoCo, exact": ("loco", "exact", 2),
    "LoCo, late": ("loco", "late", 2),
    "LoCo, divided batch": ("loco", "ddp", 2),
    "GIM, one process": ("gim", "one", 1),
    "GIM, exact": ("gim", "exact", 2),
    "GIM, two runs at once": ("gim", "twice", 2),
    "end to end, one process": ("all", "one", 1),
    "end to end, GPipe 4": ("all", "gpipe 4", 2),
    "end to end, GPipe 8": ("all", "gpipe 8", 2),
    "end to end, GPipe 16": ("all", "gpipe 16", 2),
}
LINKS = {  # name -> bytes per second, seconds of latency
    "1 Gbit/s": (1.25e8, 1e-4),
    "10 Gbit/s": (1.25e9, 5e-5),
    "100 Gbit/s": (1.25e10, 1e-5),
    "NVLink, 450 GB/s": (4.5e11, 5e-6),
}
SMALL = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
WARM = 2  # steps before those that are measured


def config(rule, encoder, size, batch, devices=1, split=(), late=False):
    """The config of a row, on the CPU."""
    from pretrain.config import get_cfg
    from pretrain.encoders import build_encoder

    cfg, names = get_cfg(), build_encoder(encoder).stage_names
    pairs = [list(pair) for pair in itertools.pairwise(names)]
    units = {"loco": pairs, "gim": [[name] for name in names], "all": [list(names)]}[rule]
    cfg.MODEL.ENCODER, cfg.MODEL.DEVICE, cfg.MODEL.UNITS = encoder, "cpu", units
    cfg.MODEL.DECODER.CONV_BLOCKS = int(rule == "loco")
    cfg.INPUT.CROP_SIZE, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = size, batch, 0.1
    cfg.MODEL.STAGE_PARALLEL.DEVICES, cfg.MODEL.STAGE_PARALLEL.SPLIT = devices, [list(parts) for parts in split]
    cfg.MODEL.STAGE_PARALLEL.LATE = late
    return cfg


def random_views(batch, size):
    """Both views of a batch, (2 * batch, 3, size, size)."""
    import torch

    views = torch.randn(2 * batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    return views.contiguous(memory_format=torch.channels_last)


def times_of_blocks(rule, encoder, settings):
    """Seconds of each block's passes, of the optimiser's step, and bytes of each block's output, in this process."""
    import torch

    from pretrain.encoders import build_encoder
    from pretrain.engine.optim import build_optimizer
    from pretrain.learning.build import build_learner
    from pretrain.learning.stage_parallel.times import measure, split_at
    from pretrain.processes.cpu import prepare_cpu

    torch.set_num_threads(1)
    prepare_cpu("cpu", keep_freed_memory=True)
    structure = build_encoder(encoder)
    blocks = sum(len(stage) for stage in structure.stages)
    split = split_at(range(1, blocks), structure)
    learner = build_learner(config(rule, encoder, settings["size"], settings["batch"], blocks, split))
    sizes, handles = [], []
    for segment in learner.segments:
        handles.append(segment.module.register_forward_hook(lambda m, x, y: sizes.append(y.numel() * y.element_size())))
    views = random_views(settings["batch"], settings["size"])
    times = measure(learner, views, rounds=settings["steps"])
    cfg = config(rule, encoder, settings["size"], settings["batch"])
    optimizer = build_optimizer(cfg.SOLVER, learner)
    found = []
    for _ in range(WARM + 1):
        for p in learner.parameters():
            p.grad = torch.zeros_like(p)
        start = time.perf_counter()
        optimizer.step()
        found.append(time.perf_counter() - start)
    counts = [sum(p.numel() for p in segment.module.parameters()) for segment in learner.segments]
    for index, segment in enumerate(learner.segments):
        if segment.top_of is not None:
            counts[index] += sum(p.numel() for p in learner.decoders[segment.top_of].parameters())
    updates = {("update", b): found[-1] * count / sum(counts) for b, count in enumerate(counts)}
    return {
        "times": [[*key, seconds] for key, seconds in {**times, **updates}.items()],
        "bytes": sizes[:blocks],
        "parameters": 4 * sum(counts),
    }


def as_times(found):
    """The times as :func:`pretrain.learning.stage_parallel.simulation.simulate` takes them."""
    return {(kind, key): seconds for kind, key, seconds in found["times"]}


def chosen_split(rule, encoder, found, devices, late):
    """The split by measured times."""
    from pretrain.encoders import build_encoder
    from pretrain.learning.stage_parallel.times import choose_split

    units = config(rule, encoder, 32, 2).MODEL.UNITS
    return choose_split(build_encoder(encoder), units, as_times(found), devices, late)[0]


def simulated(rule, encoder, found, split, late, message):
    """Seconds of a step of the devices of a split; ``message`` gives a message's seconds from its bytes."""
    from pretrain.encoders import build_encoder
    from pretrain.learning.plan import make_plan
    from pretrain.learning.stage_parallel.simulation import simulate

    plan = make_plan(build_encoder(encoder), config(rule, encoder, 32, 2).MODEL.UNITS, split=split)
    tops = [device[-1].blocks.stop - 1 for device in plan.devices]
    return simulate(plan, as_times(found), lambda lower: message(found["bytes"][tops[lower]]), late)


def step_of(row, encoder, settings, rank, split):
    """A function that runs a step of a row in this process, and what it has sent so far, in bytes."""
    import torch

    from pretrain.engine.optim import build_optimizer
    from pretrain.learning.build import build_learner
    from pretrain.processes.distributed import GradientReducer

    rule, how, count = ROWS[row]
    batch, size = settings["batch"], settings["size"]
    torch.manual_seed(0)
    if how.startswith("gpipe"):
        return gpipe_step(encoder, batch, size, rank, split, int(how.split()[1]))
    if how in ("one", "twice", "ddp"):
        cfg = config(rule, encoder, size, batch)
        learner, reducer = build_learner(cfg), GradientReducer() if how == "ddp" else lambda parameters: None
        optimizer = build_optimizer(cfg.SOLVER, learner)
        views = random_views(batch // count if how == "ddp" else batch, size)
        weights = sum(p.numel() * p.element_size() for p in learner.parameters())

        def step(last=False):
            learner.forward_backward(views, ready=reducer)
            if how == "ddp":
                reducer.wait()
            optimizer.step()
            optimizer.zero_grad()

        return step, lambda steps: weights * steps if how == "ddp" else 0
    return stage_step(config(rule, encoder, size, batch, count, split, how == "late"), rank)


def stage_step(cfg, rank):
    """The step of a process that has some of the stages."""
    import torch

    from pretrain.engine.optim import build_optimizer
    from pretrain.engine.stage_parallel.build import build_share
    from pretrain.engine.stage_parallel.ports import NetworkPorts
    from pretrain.processes.stage_mesh import StageMesh

    mesh = StageMesh.of(cfg.MODEL.STAGE_PARALLEL.DEVICES, "cpu")
    share = build_share(cfg, mesh)
    optimizer = build_optimizer(cfg.SOLVER, share.learner)
    ports = NetworkPorts(mesh, torch.device("cpu"), lambda peer, error: error, share.gradients)
    views = random_views(cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.CROP_SIZE) if share.is_lowest else None

    def step(last=False):
        ports.is_last = last
        share.forward_backward(ports, views)
        optimizer.step()
        optimizer.zero_grad()
        if last:
            share.drain(ports)
            ports.flush()

    return step, lambda steps: ports.bytes


def gpipe_step(encoder, batch, size, rank, split, micro):
    """The step of a process of a pipeline of SimCLR, by torch."""
    import torch
    from torch import nn
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    class Permuted(nn.Module):
        """The dimensions in another order."""

        def __init__(self, *order):
            super().__init__()
            self.order = order

        def forward(self, x):
            return x.permute(*self.order).contiguous() if self.order[1] == 2 else x.permute(*self.order)

    from pretrain.engine.optim import build_optimizer
    from pretrain.learning.build import build_learner
    from pretrain.learning.units import read_split
    from pretrain.processes.stage_mesh import StageMesh

    cfg = config("all", encoder, size, batch)
    learner = build_learner(cfg, StageMesh.of(len(split), "cpu").data)  # the loss is of this process's micro-batch
    blocks = [block for stage in learner.encoder.stages for block in stage]
    run = read_split(split, learner.encoder)[rank]
    # The schedule sends contiguous tensors only: channels_last becomes a contiguous (2B, H, W, C), and back
    before = [Permuted(0, 3, 1, 2)] if rank else []
    after = [Permuted(0, 2, 3, 1)] if rank + 1 < len(split) else [next(iter(learner.decoders.values()))]
    module = nn.Sequential(*before, *blocks[run.start : run.stop], *after)

    def loss(z, target):
        return learner.loss(*z.chunk(2))

    schedule = ScheduleGPipe(PipelineStage(module, rank, len(split), torch.device("cpu")), micro, loss_fn=loss)
    optimizer = build_optimizer(cfg.SOLVER, module)
    views = random_views(batch, size)  # each micro-batch is taken for both views of its images
    target = torch.zeros(2 * batch)
    boundary = []
    if rank == 0:
        module.register_forward_hook(lambda m, x, y: boundary.append(y.numel() * y.element_size()))

    def step(last=False):
        schedule.step(*([views] if rank == 0 else []), target=None if rank == 0 else target, return_outputs=False)
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda steps: sum(boundary)


def run_rank(rank, store, what, row, encoder, settings, split):
    """One process of a row: seconds of a step, bytes sent a step, or the memory in MB."""
    import torch
    import torch.distributed as dist

    import pretrain.engine.stage_parallel.trainer  # noqa: F401 (imports must not count as the model's memory)
    from pretrain.processes.cpu import prepare_cpu

    count, steps = ROWS[row][2], settings["steps"] if what == "seconds" else 1
    torch.set_num_threads(1)
    prepare_cpu("cpu", keep_freed_memory=what == "seconds")
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    common.forget_peak()
    idle = common.memory("VmRSS")
    step, sent = step_of(row, encoder, settings, rank, split)
    for _ in range(WARM):
        step()  # no barrier: it would empty the devices that work on the batches behind
    before, start, cpu = sent(WARM), time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    seconds = (time.perf_counter() - start) / steps / (count if ROWS[row][1] == "twice" else 1)
    found = {
        "seconds": seconds,
        "cpu": (time.process_time() - cpu) / steps,
        "sent": (sent(WARM + steps) - before) / steps,
    }
    found["memory"] = common.memory("VmHWM") - idle
    step(last=True)
    if count > 1:
        dist.destroy_process_group()
    return found


def run_row(what, row, encoder, settings, split):
    """All processes of a row: the slowest one's seconds, and of each the CPU time, memory and bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(SMALL if what == "memory" else {})}
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(ROWS[row][2]):
            arguments = json.dumps(["rank", rank, f"{folder}/store", what, row, encoder, settings, split])
            command = [sys.executable, "-W", "ignore", __file__, common.CHILD, arguments]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            started.append(subprocess.Popen(command, text=True, env=environment, **pipes))
        ended = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        sys.exit("\n".join(error for _, error in ended))
    ranks = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    return {
        "seconds": max(rank["seconds"] for rank in ranks),
        **{key: [rank[key] for rank in ranks] for key in ("cpu", "sent", "memory")},
    }


def loopback(size=32_000_000, rounds=5):
    """Bytes per second that two processes send each other one way: by a row of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, "-W", "ignore", __file__, common.CHILD]
        commands = [[*start, json.dumps(["link", rank, f"{folder}/store", size, rounds])] for rank in range(2)]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
        return json.loads(started[0].communicate()[0].splitlines()[-1]) if not started[1].wait() else 1e9


def run_link(rank, store, size, rounds):
    """One end of :func:`loopback`."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    tensor, found = torch.zeros(size, dtype=torch.uint8), []
    for _ in range(rounds):
        dist.barrier()
        start = time.perf_counter()
        (dist.send if rank == 0 else dist.recv)(tensor, 1 - rank)
        dist.barrier()
        found.append(size / (time.perf_counter() - start))
    dist.destroy_process_group()
    return statistics.median(found)


def child(what, *arguments):
    """A measurement in a process of its own."""
    return {"rank": run_rank, "row": run_row, "link": run_link, "times": times_of_blocks}[what](*arguments)


def add_arguments(parser):
    parser.add_argument("--encoders", nargs="+", default=["resnet50", "presnet50"], help="that are measured")
    parser.add_argument("--simulated", nargs="*", default=["resnet50", "resnet152", "presnet50"])
    parser.add_argument("--batch", type=int, default=32, help="images, two views each (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="names as in the table")
    parser.add_argument("--devices", nargs="+", type=int, default=[2, 3, 4, 8, 16, 32, 64], help="that are simulated")


def measure(args):
    """Times of blocks, then the rows in turns, then the simulation."""
    if unknown := set(args.rows) - set(ROWS):
        raise ValueError(f"unknown rows {sorted(unknown)}: choose from {list(ROWS)}")
    settings = {key: getattr(args, key) for key in ("batch", "size", "steps")}
    results = {"measured": {}, "simulated": {}, "loopback": loopback()}
    one_thread = {"OMP_NUM_THREADS": "1"}

    @functools.cache
    def blocks(rule, encoder):
        common.progress(f"{encoder}, {rule}: times of the blocks")
        return common.in_child(__file__, "times", rule, encoder, settings, env=one_thread)

    for encoder in args.encoders:
        rows = results["measured"][encoder] = {}
        for row in args.rows:
            rule, how, count = ROWS[row]
            found = blocks(rule, encoder)
            if how.startswith("gpipe"):
                split, predicted = balanced_split(encoder, found, count), None
            elif how in ("exact", "late"):
                late = how == "late"
                split = chosen_split(rule, encoder, found, count, late)
                link = lambda size: size / results["loopback"]  # noqa: E731
                step = simulated(rule, encoder, found, split, late, link)
                predicted = simulated(rule, encoder, found, [], False, link) / step
            else:
                split, predicted = [], None
            rows[row] = {"split": split, "predicted": predicted, "rounds": []}
            rows[row]["memory"] = common.in_child(__file__, "row", "memory", row, encoder, settings, split)["memory"]
        for number, row in itertools.product(range(args.rounds), args.rows):
            common.progress(f"{encoder}, round {number + 1}/{args.rounds}: {row}")
            found = common.in_child(__file__, "row", "seconds", row, encoder, settings, rows[row]["split"])
            rows[row]["rounds"].append(found)
    for encoder in args.simulated:
        results["simulated"][encoder] = simulate_devices(encoder, blocks("loco", encoder), args.devices)
    return results


def balanced_split(encoder, found, devices):
    """A split by the blocks' forward and full backward times, as a pipeline needs it."""
    from pretrain.encoders import build_encoder
    from pretrain.learning.stage_parallel.simulation import balanced
    from pretrain.learning.stage_parallel.times import split_at

    times = as_times(found)
    weights = [times["forward", b] + times["full backward", b] for b in range(len(found["bytes"]))]
    weights[-1] += sum(seconds for (kind, _), seconds in times.items() if kind == "loss")
    return split_at(balanced(weights, devices), build_encoder(encoder))


def simulate_devices(encoder, found, counts):
    """Speed of LoCo on numbers of devices and links, relative to one device: exact, late, and a divided batch."""
    rows = []
    runs = [k for k in sorted({2, 3, 4, 8, *counts}) if k <= min(16, len(found["bytes"]))]
    one = simulated("loco", encoder, found, [], False, lambda size: 0.0)
    splits = {}
    for devices, late in itertools.product(runs, (False, True)):
        common.progress(f"{encoder}: best split among {devices} devices, {'late' if late else 'exact'}")
        splits[devices, late] = chosen_split("loco", encoder, found, devices, late)
    for link, (bandwidth, latency) in LINKS.items():

        def reduction(copies, share, bandwidth=bandwidth, latency=latency):
            """Seconds of a ring all-reduce of a share of the weights."""
            seconds = 2 * (copies - 1) / copies * share * found["parameters"] / bandwidth
            return seconds + (2 * copies * latency if copies > 1 else 0)

        steps = {
            (k, late): simulated("loco", encoder, found, splits[k, late], late, lambda size: size / bandwidth + latency)  # noqa: B023
            for k, late in splits
        }
        for count in counts:
            best = {}
            for late in (False, True):
                choices = [k for k in runs if count % k == 0]
                best[late] = max(
                    (count / k * one / (steps[k, late] + reduction(count // k, 1 / k)), k) for k in choices
                )
            divided = count * one / (one + reduction(count, 1))
            rows.append({"link": link, "devices": count, "exact": best[False], "late": best[True], "divided": divided})
    return rows


def markdown(record):
    """The tables of a record."""
    settings, results = record["settings"], record["results"]
    parts = [
        f"{settings['batch']} images (two views) of {settings['size']} px; processes of one thread each; medians of "
        f"{settings['rounds']} rounds of {settings['steps']} steps. Between two processes: "
        f"{results['loopback'] / 1e9:.2g} GB/s."
    ]
    for encoder, rows in results["measured"].items():
        parts += [f"**{encoder}**, measured", measured_table(rows, settings)]
    for encoder, rows in results["simulated"].items():
        parts += [f"**{encoder}**, LoCo, simulated: times as fast as one device", simulated_table(rows)]
    return "\n\n".join(parts)


def measured_table(rows, settings):
    """Markdown of one encoder's rows."""
    lines = []
    for row, found in rows.items():
        base = rows.get(f"{row.split(',')[0]}, one process", found)
        seconds, ones = ([one["seconds"] for one in of["rounds"]] for of in (found, base))
        memory = max(found["memory"])
        lines.append(
            [
                row,
                " / ".join(", ".join(parts) for parts in found["split"]),
                f"{settings['batch'] / statistics.median(seconds):.2f}",
                f"{common.median_ratio(ones, seconds):.2f}x",
                f"{found['predicted']:.2f}x" if found["predicted"] else "",
                ", ".join(f"{of:.0f}" for of in found["memory"]),
                f"{memory / max(base['memory']):.2f}x",
                f"{sum(found['rounds'][-1]['sent']) / 1e6:.1f}",
            ]
        )
    heads = [">images/s", ">speed", ">simulated", ">memory, MB", ">of one process", ">MB sent a step"]
    return common.table(["row", "split", *heads], lines)


def simulated_table(rows):
    """Markdown of one encoder's simulation; in brackets the number of devices that share the stages."""
    lines = [
        [
            row["link"],
            str(row["devices"]),
            *(f"{speed:.2f}x ({devices})" for speed, devices in (row["exact"], row["late"])),
            f"{row['divided']:.2f}x",
        ]
        for row in rows
    ]
    return common.table(["link", ">devices", ">exact (devices per network)", ">late", ">divided batch"], lines)


if __name__ == "__main__":
    common.main(sys.modules[__name__])

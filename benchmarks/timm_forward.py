#!/usr/bin/env python3
"""Forward pass of a frozen network of timm: the detector's backbone beside timm's own forward_features.

    python benchmarks/timm_forward.py [--networks convnext_tiny ...] [--size 800 1216] [--rounds 9] [--compile]

Both have the same weights and the same images, and run without autograd; in each round they take turns. timm's
forward_features gives the last map only, and a ViT's with its final norm; the backbone gives all maps of its levels.
--compile adds both under torch.compile.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

NETWORKS = ["vit_small_patch16_224", "convnext_tiny"]
SMOKE = {"networks": ["test_vit", "test_convnext"], "size": [64, 96], "rounds": 2, "compile": False}
PLAIN, COMPILED = ("timm", "backbone"), ("timm, compiled", "backbone, compiled")


def child(name, size, images, rounds, compile):
    """Seconds of each round of each variant, and the largest relative difference of the maps."""
    import timm
    import torch

    from loco_det.modeling.frozen import speed_up
    from loco_det.modeling.timm.backbone import TimmBackbone
    from loco_det.modeling.timm.network import is_plain, levels_of, run
    from pretrain.processes.cpu import prepare_cpu

    device = "cuda" if torch.cuda.is_available() else "cpu"
    prepare_cpu(device, keep_freed_memory=True)
    torch.manual_seed(0)
    x = torch.randn(images, 3, *size, device=device)
    plain = is_plain(levels_of(name))
    reference = timm.create_model(name, num_classes=0, **({"dynamic_img_size": True} if plain else {}))
    reference = reference.eval().to(device)
    variants = {}
    for kinds, compiled in ((PLAIN, False), *([(COMPILED, True)] if compile else [])):
        backbone = TimmBackbone(name, freeze_at=99).to(device, memory_format=torch.channels_last)
        backbone.network.load_state_dict(reference.state_dict(), strict=False)
        assert speed_up(backbone, compiled)
        forward = torch.compile(reference.forward_features) if compiled else reference.forward_features
        variants |= dict(zip(kinds, (forward, backbone), strict=True))
    seconds = {kind: [] for kind in variants}
    with torch.no_grad():
        wanted, got = run(reference, x)[-1], list(variants[PLAIN[1]](x).values())[-1]
        difference = ((got - wanted).abs().max() / wanted.abs().max()).item()
        for number in range(-1, rounds):  # the first one builds and compiles
            for kind in sorted(variants, reverse=number % 2 == 1):
                start = time.perf_counter()
                variants[kind](x)
                if device == "cuda":
                    torch.cuda.synchronize()
                if number >= 0:
                    seconds[kind].append(time.perf_counter() - start)
    return {"seconds": seconds, "difference": difference, "device": device}


def add_arguments(parser):
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1216], metavar="PIXELS", help="height and width")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="also compiled, which takes a minute a network")


def measure(args):
    found = {}
    for name in args.networks:
        common.progress(f"{name}, {args.rounds} rounds")
        found[name] = common.in_child(__file__, name, args.size, args.images, args.rounds, args.compile)
    return found


def markdown(record):
    rows, settings = [], record["settings"]
    for name, one in record["results"].items():
        for kind, values in one["seconds"].items():
            reference = one["seconds"][kind.replace("backbone", "timm")]
            ratio = f"{statistics.median(a / b for a, b in zip(values, reference, strict=True)):.3f}"
            ours = kind.startswith("backbone")
            last = [ratio, f"{one['difference']:.1g}"] if ours else ["", ""]
            rows.append([f"`{name}`", kind, f"{statistics.median(values):.3f}", *last])
    heads = ["network", "forward", ">s", ">times timm's", ">largest difference"]
    height, width = settings["size"]
    text = f"{settings['images']} image of {height} x {width}, medians of {settings['rounds']} rounds."
    return f"{text}\n\n" + common.table(heads, rows)


if __name__ == "__main__":
    common.main(sys.modules[__name__])

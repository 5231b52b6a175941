#!/usr/bin/env python3
"""Turn the ResNet in any pretraining checkpoint into weights for Detectron2, and prove that they compute the same.

Verification always runs: the source network and Detectron2's backbone, loaded from the written file, see the same
images, and all stages must agree to float rounding, in evaluation and in training mode. If they do not, or if the
checkpoint is not what it should be, nothing is written. Beside OUT.pkl comes OUT.yaml, the part of a Detectron2 config
that these weights need.
"""

import argparse
import json
import os
import signal
import sys
import warnings
from pathlib import Path

# Before tools/, where the command line pretrain.py would hide the package pretrain.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Importing Detectron2 prints it under recent torch; errors are to be one line.
warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)

from loco_det.convert import LAYOUTS, VerificationError, check, check_output, convert, yaml_lines
from pretrain.files.text import for_terminal

EXAMPLE = """examples:
  python tools/convert_to_d2.py output/loco/model_final.pth output/loco/backbone.pkl
  python tools/convert_to_d2.py moco_v2_800ep_pretrain.pth.tar moco.pkl --base configs/coco_loco_frozen.yaml
  python tools/train_net.py --config-file moco.yaml OUTPUT_DIR output/moco_frozen
  python tools/convert_to_d2.py checkpoint.ckpt --check-only --json

exit code: 0 written and verified, 1 refused or not written, 2 a wrong argument or no such file"""


def parser():
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("checkpoint", nargs="?", help=".pth, .pt, .tar, .ckpt, .bin, .safetensors, .pkl or .npz, or a "
                   "folder of Hugging Face's transformers")  # fmt: skip
    p.add_argument("output", metavar="OUT.pkl", nargs="?", help="the file to write, for MODEL.WEIGHTS")
    sources = ["auto", *dict.fromkeys(row.name for row in LAYOUTS)]
    p.add_argument("--source", choices=sources, default="auto", metavar="NAME",
                   help="refuse any other layout than this of --list-sources (default: auto)")  # fmt: skip
    p.add_argument("--arch", default="auto", metavar="NAME", help="refuse any other network, such as resnet50")
    p.add_argument("--ema", action="store_true", help="take the network of the moving average (EMA, key, teacher)")
    p.add_argument("--prefix", help="of the encoder's names as they are in the file (module.encoder.), for a project "
                   "that --list-sources does not have")  # fmt: skip
    p.add_argument("--base", metavar="CONFIG", help="config that OUT.yaml shall build upon, to be trained as it is")
    p.add_argument("--config-file", metavar="CONFIG", help="of the run, for a checkpoint of Detectron2's own; "
                   "default: config.yaml beside it")  # fmt: skip
    p.add_argument("--check-only", action="store_true", help="convert and verify, but write nothing")
    p.add_argument("--unsafe-load", action="store_true", help="unpickle whatever is in the file, which can run code "
                   "that it brings along: only if you trust who made it")  # fmt: skip
    p.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    p.add_argument("--list-sources", action="store_true", help="print the layouts that are recognised, and their rules")
    return p


def main(argv=None):
    """Run the command line; returns the exit code."""
    arguments = parser()
    args = arguments.parse_args(argv)
    if args.list_sources:
        list_sources(args.json)
        return 0
    if not args.checkpoint or bool(args.output) == args.check_only:
        arguments.error("give a checkpoint, and either OUT.pkl or --check-only")
    if args.check_only and args.base:
        arguments.error("--check-only writes no config: leave out --base")
    if args.prefix is not None and (args.ema or args.source != "auto"):
        arguments.error("--prefix names one network by itself: leave out --source and --ema")
    options = {key: getattr(args, key) for key in ("arch", "source", "ema", "prefix", "config_file")}
    options["unsafe"] = args.unsafe_load
    try:
        if not args.check_only:
            check_output(args.checkpoint, args.output, args.base)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    if args.check_only:
        return run(lambda: check(args.checkpoint, **options), args)
    return run(lambda: convert(args.checkpoint, args.output, args.base, **options), args)


def run(conversion, args):
    """Call a conversion and print what it did, or one line; returns the exit code."""
    try:
        result = conversion()
    except FileNotFoundError as error:
        return fail(error, 2)
    except VerificationError as error:
        return fail(VerificationError(f"{args.checkpoint}: {error}; nothing was written"), 1)
    except (OSError, ValueError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail(KeyboardInterrupt("interrupted, nothing was written"), 130)
    report(result, args.json)
    return 0


def list_sources(as_json):
    """Print every layout: its name, whose it is, and by what it is recognised."""
    rows = [{"source": row.name, "project": row.project, "rule": row.rule} for row in LAYOUTS]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['source']:14} {row['project']}: {row['rule']}")


def report(result, as_json=False):
    """Print what a conversion did."""
    if as_json:
        print(json.dumps(result.as_dict(), indent=2))
        return
    for line in _lines(result):
        print(for_terminal(line))


def _lines(result):
    """What a conversion did, in lines of text."""
    source = result.source
    dropped = ", ".join(f"{count} of {name}" for name, count in source.dropped.items()) or "none"
    place = f" at {source.location!r}" if source.location else ""
    yield f"source: {source.arch}{place}, laid out as {source.layout} ({source.project}); entries dropped: {dropped}"
    for note in source.notes:
        yield f"note: {note}"
    yield "largest difference from the source network, absolute (relative):"
    for name, evaluated in result.differences["eval"].items():
        trained = result.differences["train"][name]
        yield (
            f"  {name}  eval mode {evaluated.absolute:.3g} ({evaluated.relative:.3g})"
            f"  training mode {trained.absolute:.3g} ({trained.relative:.3g})"
        )
    kind = f"{source.arch}, {result.entries} arrays, {result.size / 1e6:.1f} MB, verified"
    yield f"wrote {result.output}: {kind}" if result.output else f"checked, nothing written: {kind}"
    if result.config_file or not result.output:
        where = f", written to {result.config_file}" if result.config_file else ""
        yield f"config that these weights need{where}:"
        yield from yaml_lines(result.config)


def fail(message, code):
    """Print one line to stderr, whatever characters a file's names have; returns the exit code."""
    if "LOCO_DET_TRACEBACK" in os.environ:
        raise message
    if isinstance(message, OSError) and message.filename and message.strerror:
        message = f"{message.filename}: {message.strerror}"
    print("error:", for_terminal(message), file=sys.stderr)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which leaves nothing half-written
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as head may have seen enough
    sys.stdout.reconfigure(errors="backslashreplace")  # names of a file, on a terminal of another encoding
    sys.exit(main())

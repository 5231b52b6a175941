"""Turn a pretrained encoder into weights for Detectron2, and prove that they compute the same.

Verification always runs: the source network and Detectron2's backbone, loaded from the written file, see the same
images, and res2..res5 must agree to float rounding. If they do not, or if the checkpoint is not what it should be,
nothing is written.
"""

import argparse
import sys
import warnings
from pathlib import Path

# Before tools/, where the command line pretrain.py would hide the package pretrain.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Importing Detectron2 prints it under recent torch; errors are to be one line.
warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)

from loco_det.convert import VerificationError, check_output, convert
from pretrain.encoders import RESNETS

EXAMPLE = """example:
  python tools/convert_to_d2.py output/loco/model_final.pth output/loco/backbone.pkl
  python tools/convert_to_d2.py resnet50.pth resnet50.pkl --arch resnet50

exit code: 0 written and verified, 1 refused or not written, 2 a wrong argument or no such file"""


def main(argv=None):
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint of tools/pretrain.py, or a torchvision-style state dict")
    parser.add_argument("output", metavar="OUT.pkl", help="the file to write, for MODEL.WEIGHTS")
    parser.add_argument("--arch", choices=("auto", *RESNETS), default="auto", help="refuse any other (default: auto)")
    args = parser.parse_args(argv)
    try:
        check_output(args.checkpoint, args.output)
    except (ValueError, FileNotFoundError) as error:
        return fail(error, 2)
    try:
        result = convert(args.checkpoint, args.output, args.arch)
    except FileNotFoundError as error:
        return fail(error, 2)
    except VerificationError as error:
        return fail(f"{args.checkpoint}: {error}; nothing was written", 1)
    except (OSError, ValueError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted, nothing was written", 130)

    dropped = ", ".join(f"{count} of {name}" for name, count in result.dropped.items()) or "none"
    print(f"source: {result.arch} in a {result.layout}; entries dropped: {dropped}")
    print("largest difference from the source network, absolute (relative):")
    for name, evaluated in result.differences["eval"].items():
        trained = result.differences["train"][name]
        print(
            f"  {name}  eval mode {evaluated.absolute:.3g} ({evaluated.relative:.3g})"
            f"  training mode {trained.absolute:.3g} ({trained.relative:.3g})"
        )
    print(f"wrote {result.output}: {result.arch}, {result.entries} arrays, {result.size / 1e6:.1f} MB, verified")
    print("config that these weights need:", *result.config, sep="\n")
    return 0


def fail(message, code):
    """Print one line to stderr; returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

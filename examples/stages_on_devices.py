"""How fast would a network train if its stages were on several devices? Measured blocks, simulated devices.

    python examples/stages_on_devices.py [ENCODER]

docs/stage_parallel.md explains what the devices send each other.
"""

import itertools
import sys

import torch

from pretrain import build_encoder, build_learner, get_cfg
from pretrain.learning.stage_parallel.times import choose_split, measure, split_at


def main(arguments: list[str], images: int = 8, size: int = 64) -> dict[tuple[int, bool], float]:
    """Returns (number of devices, whether updates may be one batch late) -> times as fast as one device."""
    encoder = build_encoder(arguments[0] if arguments else "resnet18")
    blocks = sum(len(stage) for stage in encoder.stages)
    cfg = get_cfg()
    cfg.MODEL.ENCODER, cfg.MODEL.DEVICE = (arguments or ["resnet18"])[0], "cpu"
    cfg.MODEL.UNITS = [list(pair) for pair in itertools.pairwise(encoder.stage_names)]  # LoCo
    cfg.MODEL.DECODER.CONV_BLOCKS = 1
    cfg.MODEL.STAGE_PARALLEL.SPLIT = split_at(range(1, blocks), encoder)  # each block by itself, to be measured
    times = measure(build_learner(cfg), torch.randn(2 * images, 3, size, size))
    speeds = {}
    for devices, late in itertools.product((2, 3, 4), (False, True)):
        split, step, one = choose_split(encoder, cfg.MODEL.UNITS, times, devices, late)
        speeds[devices, late] = one / step
        stages = " / ".join(", ".join(parts) for parts in split)
        print(f"{devices} devices, {'late ' if late else 'exact'}: {one / step:.2f} times one device: {stages}")
    return speeds


if __name__ == "__main__":
    main(sys.argv[1:])

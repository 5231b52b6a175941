"""Which type the forward passes compute in: what SOLVER.AMP.ENABLED ``auto`` stands for on a device."""

import logging
import os
import time

import torch
from detectron2.utils import comm

from ..files.yaml_files import read_yaml

logger = logging.getLogger(__name__)
AUTO = "auto"
# With these a step of configs/pretrain/demo_loco.yaml takes 0.3 s in bfloat16 and 0.7 s in float32 (2 cores
# of an AMD EPYC); without them 0.8 s and 0.5 s (no bfloat16), or 12 s and 0.7 s (AVX2): benchmarks/precision.py.
FAST = {"amx_bf16", "avx512_bf16"}
# ARM has instructions, but not every build of torch has kernels, and then the gradient of a convolution is very slow.
TO_BE_MEASURED = {"bf16"}


def with_precision(cfg, resume=False):
    """Decide what SOLVER.AMP.ENABLED ``auto`` stands for, say why, and warn of a bfloat16 that is slow here.

    A run that goes on does so in the type that it began with, which its config.yaml tells.

    Args:
        cfg: config with SOLVER.AMP.ENABLED (True, False or auto), MODEL.DEVICE and OUTPUT_DIR; not changed.
        resume: whether the run in OUTPUT_DIR is resumed.

    Returns:
        CfgNode: ``cfg``, or a copy, whose SOLVER.AMP.ENABLED is True or False, the same in all processes.
    """
    wanted = cfg.SOLVER.AMP.ENABLED
    if wanted is False:
        return cfg
    begun = _precision_of_run(cfg.OUTPUT_DIR) if resume else None
    answers = comm.all_gather((*bfloat16_support(cfg.MODEL.DEVICE), begun))
    fast, why, _ = min(answers, key=lambda answer: answer[0])  # False if it is so in any process
    begun = answers[0][2]
    enabled = wanted if wanted != AUTO else fast if begun is None else begun
    if wanted == AUTO:
        reason = why if begun is None else "the run began so"
        logger.info(f"SOLVER.AMP.ENABLED auto: {'bfloat16' if enabled else 'float32'}, because {reason}")
        frozen, cfg = cfg.is_frozen(), cfg.clone()
        cfg.defrost()
        cfg.SOLVER.AMP.ENABLED = enabled
        if frozen:
            cfg.freeze()
    if enabled and not fast:
        advice = "a new run would be faster with auto or False" if resume else "auto or False is faster"
        logger.warning(f"SOLVER.AMP.ENABLED is True, but bfloat16 is slow here, because {why}: {advice}")
    return cfg


def bfloat16_support(device):
    """Whether a device computes convolutions faster in bfloat16 than in float32.

    Args:
        device: as MODEL.DEVICE, such as "cpu" or "cuda:1".

    Returns:
        tuple: True or False; and what tells, a clause such as "this CPU has avx512_bf16".
    """
    kind = device.partition(":")[0]
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"this GPU has {'' if native else 'no '}instructions for bfloat16"
    if kind != "cpu":
        return False, f"nothing is known about bfloat16 on {kind}"
    flags = cpu_flags()
    if not torch.backends.mkldnn.is_available():
        return False, "this build of torch has no oneDNN, and so no fast bfloat16 on the CPU"
    if found := sorted(flags & FAST):
        return True, f"this CPU has {' and '.join(found)}"
    if not flags & TO_BE_MEASURED:
        return False, "this CPU has no instructions for bfloat16"
    bfloat16, float32 = conv_seconds(torch.bfloat16), conv_seconds(torch.float32)
    return bfloat16 < float32, f"a convolution took {bfloat16 * 1e3:.3g} ms in bfloat16, {float32 * 1e3:.3g} in float32"


def cpu_flags():
    """Names of the instruction sets that this CPU has, as a set; what cannot be asked has none."""
    if hasattr(torch.cpu, "get_capabilities"):  # of newer torch, for every operating system
        return {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    try:
        with open("/proc/cpuinfo") as f:
            return set(f.read().split())
    except OSError:
        return set()


def conv_seconds(dtype):
    """Seconds of a 3x3 convolution of ResNet-18's first stage, forward and backward, the least of five.

    It draws no random numbers, so that those of the run stay what they are.
    """
    weight = torch.ones(64, 64, 3, 3, requires_grad=True)
    images = torch.ones(8, 64, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = torch.nn.functional.conv2d(images, weight, padding=1)
        out.sum().backward()
        times.append(time.perf_counter() - begun)
    return min(times)


def _precision_of_run(folder):
    """SOLVER.AMP.ENABLED in a run's config.yaml; None if it is not told there."""
    try:
        enabled = read_yaml(os.path.join(folder, "config.yaml"))["SOLVER"]["AMP"]["ENABLED"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the checkpoint has it too, and is refused if it differs
    return enabled if isinstance(enabled, bool) else None

"""The data type of the forward passes: what SOLVER.AMP.ENABLED ``auto`` means on a device."""

import logging
import os
import time

import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from ..files.yaml_files import read_yaml

logger = logging.getLogger(__name__)
AUTO = "auto"
# CPU flags of fast bfloat16. A step of configs/pretrain/demo_loco.yaml takes 0.3 s in bfloat16 and 0.7 s in float32
# with them (2 cores of an AMD EPYC); without them 0.8 s and 0.5 s, or with AVX2 only 12 s and 0.7 s
# (benchmarks/precision.py).
FAST = {"amx_bf16", "avx512_bf16"}
# ARM's flag is not enough: without a kernel in the build of torch, the gradient of a convolution is very slow.
TO_BE_MEASURED = {"bf16"}


def with_precision(cfg: CfgNode, resume: bool = False) -> CfgNode:
    """Replace SOLVER.AMP.ENABLED ``auto`` by True or False, log why, and warn if bfloat16 is slow on the device.

    A resumed run keeps the value in its config.yaml.

    Args:
        cfg: config with SOLVER.AMP.ENABLED (True, False or auto), MODEL.DEVICE and OUTPUT_DIR; not changed.
        resume: whether the run in OUTPUT_DIR is resumed.

    Returns:
        ``cfg`` or a copy, whose SOLVER.AMP.ENABLED is True or False, the same in all processes.
    """
    wanted = cfg.SOLVER.AMP.ENABLED
    if wanted is False:
        return cfg
    begun = _precision_of_run(cfg.OUTPUT_DIR) if resume else None
    answers = comm.all_gather((*bfloat16_support(cfg.MODEL.DEVICE), begun))
    fast, why, _ = min(answers, key=lambda answer: answer[0])  # False if it is False in any process
    begun = answers[0][2]
    enabled = wanted if wanted != AUTO else fast if begun is None else begun
    if wanted == AUTO:
        reason = why if begun is None else "the run began with it"
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


def bfloat16_support(device: str) -> tuple[bool, str]:
    """Whether a device computes convolutions faster in bfloat16 than in float32.

    Args:
        device: MODEL.DEVICE, such as "cpu" or "cuda:1".

    Returns:
        The answer, and the reason as a clause, such as "this CPU has avx512_bf16".
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


def cpu_flags() -> set[str]:
    """Names of the CPU's instruction sets; empty if the system does not tell them."""
    if hasattr(torch.cpu, "get_capabilities"):  # newer torch, on every operating system
        return {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    try:
        with open("/proc/cpuinfo") as f:
            return set(f.read().split())
    except OSError:
        return set()


def conv_seconds(dtype: torch.dtype) -> float:
    """Seconds of a 3x3 convolution of ResNet-18's first stage, forward and backward; the minimum of five.

    No random numbers are drawn, so that the run's random numbers do not change.

    Args:
        dtype: torch.bfloat16, by autocast, or torch.float32.
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


def _precision_of_run(folder: str) -> bool | None:
    """SOLVER.AMP.ENABLED in a run's config.yaml; None if it is not there."""
    try:
        enabled = read_yaml(os.path.join(folder, "config.yaml"))["SOLVER"]["AMP"]["ENABLED"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the checkpoint has it too, and is refused if the value differs
    return enabled if isinstance(enabled, bool) else None

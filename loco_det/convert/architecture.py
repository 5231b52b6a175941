"""Which ResNet a state dict holds, told from its names and shapes; anything else is refused with what was seen."""

import re

import torch

from pretrain.encoders import RESNETS, build_encoder

# Kind of block and number of blocks in layer1..layer4 (He et al. 2016, Table 1).
BLOCKS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}
_TRANSFORMER = ("cls_token", "class_token", "patch_embed.", "conv_proj.", "pos_embed")
COUNTER = "num_batches_tracked"  # BatchNorm's count of training steps: not a weight, and absent from older checkpoints


def some(items):
    """The first three of a list and how many more there are, for a one-line message."""
    items = list(items)
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more


def reference(arch):
    """The complete state dict of ``arch`` as shapes and types only: meta tensors, no memory, no random numbers."""
    with torch.device("meta"):
        return build_encoder(arch).state_dict()


def infer_arch(state_dict):
    """Tell which encoder a state dict belongs to, and that it is that encoder, whole and with nothing else.

    Args:
        state_dict: torchvision-style name -> tensor, without ``fc``. ``num_batches_tracked`` may be absent.

    Returns:
        str: one of ``pretrain.encoders.RESNETS``.

    Raises:
        ValueError: in one line, what was seen and what was expected.
    """
    arch = _by_blocks(state_dict)
    expected = reference(arch)
    missing = [name for name in expected if name not in state_dict and not name.endswith(COUNTER)]
    extra = [name for name in state_dict if name not in expected]
    shapes = [
        f"{name} is {_size(state_dict[name])} and should be {_size(tensor)}"
        for name, tensor in expected.items()
        if name in state_dict and state_dict[name].shape != tensor.shape
    ]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({some(missing)})")
    if extra:
        faults.append(f"{len(extra)} left over ({some(extra)})")
    if shapes:
        faults.append(f"{len(shapes)} of another shape, as in wide, thin or grouped variants ({some(shapes)})")
    if faults:
        raise ValueError(f"not torchvision's {arch}, though it has its blocks: {'; '.join(faults)}")
    return arch


def _by_blocks(state_dict):
    """The encoder with this kind and number of blocks; raises ValueError if there is none."""
    if "conv1.weight" not in state_dict:
        seen = "no conv1.weight"
        transformer = [name for name in state_dict if name.startswith(_TRANSFORMER)]
        if transformer:
            seen = f"a vision transformer ({transformer[0]})"
        elif any(name.startswith("conv1.0.") for name in state_dict):
            seen = "a deep stem of several convolutions (conv1.0.weight), as in resnet50d"
        raise ValueError(
            f"expected a torchvision ResNet without prefix (conv1.weight, layer1.0.conv1.weight, ...), "
            f"saw {seen} among {len(state_dict)} names ({some(state_dict)})"
        )
    blocks = [set(), set(), set(), set()]
    for name in state_dict:
        if match := re.match(r"layer([1-4])\.(\d+)\.", name):
            blocks[int(match[1]) - 1].add(match[2])
    kind = "bottleneck" if any(re.match(r"layer\d\.\d+\.conv3\.", name) for name in state_dict) else "basic"
    saw = (kind, tuple(len(indices) for indices in blocks))
    for arch in RESNETS:
        if BLOCKS[arch] == saw:
            return arch
    expected = ", ".join(f"{_blocks(BLOCKS[arch])} ({arch})" for arch in RESNETS)
    raise ValueError(f"saw a ResNet of {_blocks(saw)} blocks, expected one of {expected}")


def _blocks(kind_and_counts):
    kind, counts = kind_and_counts
    return f"{kind} {'-'.join(map(str, counts))}"


def _size(tensor):
    return "x".join(map(str, tensor.shape)) or "a scalar"

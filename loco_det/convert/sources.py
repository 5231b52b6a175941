"""A checkpoint file -> a torchvision-style state dict, whole, in float32, and checked for what a file can get wrong."""

import os
import re
import warnings
from collections import Counter
from dataclasses import dataclass

import torch

from pretrain.encoders import RESNETS

from .architecture import COUNTER, infer_arch, reference, some

PRETRAINING_FORMAT = "loco-det pretraining"


@dataclass
class Source:
    """A checkpoint, read.

    Attributes:
        state_dict: torchvision's names -> tensors on the CPU, with torchvision's shapes and types; complete.
        arch: one of ``pretrain.encoders.RESNETS``.
        layout: what kind of file it was, in words.
        dropped: first part of the names that are no part of the encoder (``decoders``, ``fc``) -> how many there were.
    """

    state_dict: dict
    arch: str
    layout: str
    dropped: dict


def load_source(path, arch="auto"):
    """Read a pretraining checkpoint of ours, or a torchvision-style state dict.

    Args:
        path: the file, as written by ``torch.save``.
        arch: the encoder it must hold, one of ``pretrain.encoders.RESNETS``, or "auto".

    Returns:
        Source: the encoder's weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a checkpoint, or not of such an encoder; one line that begins with the path.
    """
    content = _read(path)
    try:
        state_dict, layout, dropped = _unwrap(content)
        stated = content.get("encoder") if layout == PRETRAINING_FORMAT else None
        if stated is not None and stated not in RESNETS:
            raise ValueError(f"its encoder is {stated!r}, but Detectron2's ResNet can only be {', '.join(RESNETS)}")
        found = infer_arch(state_dict)
        if stated not in (None, found):
            raise ValueError(f"the checkpoint calls its encoder {stated!r}, but the weights are a {found}'s")
        if arch not in ("auto", found):
            raise ValueError(f"this is a {found}, not the {arch} that was asked for")
        return Source(_complete(state_dict, found), found, layout, dropped)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path):
    """``torch.load`` restricted to tensors and plain containers, with a line that says why when it fails."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: a {'folder' if os.path.isdir(path) else 'device'}, expected a checkpoint file")
    try:
        with open(path, "rb") as file:
            head = file.read(40)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not head:
        raise ValueError(f"{path}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats: either it loads, or the line below says why not
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path}: {_reason(head, error)}") from None


def _reason(head, error):
    """Why ``torch.load`` refused a file that begins with the bytes ``head``."""
    if match := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"holds more than tensors ({match[1].rstrip('.')}), and loading that could run code: refused; "
            "if you trust the file, save its state dict alone with torch.save"
        )
    if "TorchScript" in str(error):
        return "a TorchScript archive, expected a state dict saved with torch.save"
    if head[:2] == b"PK" or head[:1] == b"\x80":  # a zip archive, as torch.save writes, or a pickle, as it did before
        return "a damaged or truncated PyTorch checkpoint: copy or download it again"
    return f"not a PyTorch checkpoint (it begins with {head[:20]!r})"


def _unwrap(content):
    """Find the encoder's weights.

    Returns:
        tuple: state dict, layout in words, Counter of dropped names.
    """
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, expected a dictionary of weights")
    if content.get("format") == PRETRAINING_FORMAT:
        weights = _state_dict(content.get("model"), "model")
        kept = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
        if not kept:
            raise ValueError(f"a {PRETRAINING_FORMAT} checkpoint without encoder.*, only {some(weights) or 'nothing'}")
        dropped = Counter(name.split(".")[0] for name in weights if not name.startswith("encoder."))
        return kept, PRETRAINING_FORMAT, dict(dropped)
    layout, weights = "torchvision-style state dict", content
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            layout, weights = f'{layout} under "{key}"', content[key]
            break
    weights = _state_dict(weights, "the file")
    if all(name.startswith("module.") for name in weights):  # saved from DataParallel or DistributedDataParallel
        layout, weights = f"{layout}, module. removed", {name[len("module.") :]: w for name, w in weights.items()}
    kept = {name: w for name, w in weights.items() if not name.startswith("fc.")}
    dropped = {"fc": len(weights) - len(kept)} if len(kept) < len(weights) else {}
    return kept, layout, dropped


def _state_dict(weights, where):
    """Return ``weights`` if it is a dictionary of names and tensors; raises ValueError otherwise."""
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{where} holds no weights")
    odd = [str(name) for name, w in weights.items() if not (isinstance(name, str) and isinstance(w, torch.Tensor))]
    if odd:
        raise ValueError(f"{where} is not a state dict: {len(odd)} of {len(weights)} entries no tensor ({some(odd)})")
    return weights


def _complete(state_dict, arch):
    """Give every tensor torchvision's type and order, and add the counters of a checkpoint that has none.

    Half and double precision become float32. A missing ``num_batches_tracked`` becomes 0, as torch itself reads such
    files. All are kept because of Detectron2's two frozen norms: BatchNorm frozen by FREEZE_AT, as in our recipes,
    reports missing keys without them, while NORM: FrozenBN ignores them but for a message about unexpected keys.
    """
    complete, broken = {}, []
    for name, meta in reference(arch).items():
        tensor = state_dict.get(name)
        if tensor is None:
            tensor = torch.zeros(meta.shape)
        usable = tensor.device.type == "cpu" and tensor.layout == torch.strided
        if not usable or not (tensor.is_floating_point() or name.endswith(COUNTER)):
            raise ValueError(f"{name} holds {tensor.dtype} values ({tensor.layout}), expected dense floating point")
        tensor = complete[name] = tensor.detach().to(meta.dtype).contiguous()
        if not torch.isfinite(tensor).all():
            broken.append(name)
    if broken:
        raise ValueError(f"NaN or infinite values in {len(broken)} tensors ({some(broken)})")
    return complete

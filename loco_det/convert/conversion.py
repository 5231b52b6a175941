"""A checkpoint in, a verified file for ``MODEL.WEIGHTS`` out, or nothing at all."""

import hashlib
import json
import os
import pickle
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from .detectron2_names import to_detectron2
from .sources import load_source
from .verify import PIXEL_MEAN, PIXEL_STD, verify


@dataclass
class Conversion:
    """What was converted, and how exactly.

    Attributes:
        output: the written file, as it was named by the caller.
        arch: one of ``pretrain.encoders.RESNETS``.
        layout: what kind of file the source was, in words.
        dropped: first part of the source's names that are no part of the encoder -> how many there were.
        entries: number of arrays in the written file.
        size: size of the written file, in bytes.
        sha256: of the source file, in hexadecimal.
        differences: "eval" and "train" -> {stage name: Difference}, against the source network.
    """

    output: str
    arch: str
    layout: str
    dropped: dict
    entries: int
    size: int
    sha256: str
    differences: dict

    @property
    def config(self):
        """The YAML lines of a Detectron2 config that these weights need."""
        depth = int(self.arch.removeprefix("resnet"))
        lines = [
            "MODEL:",
            f"  WEIGHTS: {json.dumps(self.output, ensure_ascii=False)}",
            f"  PIXEL_MEAN: {list(PIXEL_MEAN)}",
            f"  PIXEL_STD: {list(PIXEL_STD)}",
            "  RESNETS:",
            f"    DEPTH: {depth}",
            "    STRIDE_IN_1X1: False",
            "INPUT:",
            '  FORMAT: "RGB"',
        ]
        if depth < 50:
            lines.insert(6, "    RES2_OUT_CHANNELS: 64")
        return lines


def convert(checkpoint, output, arch="auto"):
    """Convert a checkpoint to Detectron2's format; verified from the written file before it gets its name.

    Args:
        checkpoint: a pretraining checkpoint of ours, or a torchvision-style state dict.
        output: the file to write, ``*.pkl``. It is replaced only when everything went well.
        arch: the encoder that the checkpoint must hold, one of ``pretrain.encoders.RESNETS``, or "auto".

    Returns:
        Conversion: a summary.

    Raises:
        FileNotFoundError: if the checkpoint or the folder of ``output`` does not exist.
        ValueError: if the checkpoint or the name ``output`` cannot be used; one line with the path.
        VerificationError: if the written file does not reproduce the source network.
        OSError: if ``output`` cannot be written.
    """
    check_output(checkpoint, output)
    source = load_source(checkpoint, arch)
    sha256 = _sha256(checkpoint)
    content = {
        "model": {name: tensor.numpy() for name, tensor in to_detectron2(source.state_dict).items()},
        "__author__": "loco-det",  # Detectron2 takes a .pkl without an author for Caffe2's
        "matching_heuristics": True,  # lets the names be found under backbone.bottom_up. or any other prefix
        # Read by nobody: Detectron2 returns further keys to the caller of load(), who ignores them.
        "source": Path(checkpoint).name,
        "arch": source.arch,
        "sha256": sha256,
    }
    # In the same folder, so that the last step is a rename; .pkl, because Detectron2 tells the format by it.
    temporary = Path(output).parent / f".convert-{uuid.uuid4().hex}.pkl"
    try:
        with _naming(output):
            _write(content, temporary)
        differences = verify(temporary, source.arch, source.state_dict)
        size = temporary.stat().st_size
        with _naming(output):
            os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    entries = len(content["model"])
    return Conversion(str(output), source.arch, source.layout, source.dropped, entries, size, sha256, differences)


def check_output(checkpoint, output):
    """Refuse, before anything is read, a file name that could not be written or that Detectron2 could not open.

    Raises:
        FileNotFoundError: if the folder of ``output`` does not exist.
        ValueError: if the name cannot be used.
    """
    output = Path(output)
    if output.suffix != ".pkl":
        raise ValueError(f"{output}: the name must end in .pkl, by which Detectron2 tells the format")
    if urlparse(str(output))._replace(query="").geturl() != str(output):
        raise ValueError(f"{output}: Detectron2 reads this name as a URL and drops a part of it, choose another name")
    if not os.path.isdir(output.parent):
        raise FileNotFoundError(f"{output}: its folder does not exist, create it first")
    if os.path.isdir(output):
        raise ValueError(f"{output}: a folder, expected the name of a file to write")
    if os.path.exists(output) and os.path.exists(checkpoint) and os.path.samefile(output, checkpoint):
        raise ValueError(f"{output}: the checkpoint itself, choose another name")


def _write(content, path):
    """Pickle ``content`` to ``path``, down to the disk."""
    with open(path, "xb") as file:
        pickle.dump(content, file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _naming(output):
    """Let a failure to write name ``output``, which the caller knows, and not the temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{output}: cannot be written ({error.strerror or error})") from error


def _sha256(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""The list of published encoder checkpoints, ``checkpoints.yaml``: what the projects themselves print of each."""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.files.yaml_files import parse_yaml

LIST = Path(__file__).with_name("checkpoints.yaml")


@dataclass(frozen=True)
class Published:
    """One published checkpoint.

    Attributes:
        name: for command lines.
        project: whose it is.
        arch: the encoder, a name for ``pretrain.encoders.build_encoder``.
        layout: what the converter takes it for, a name of ``loco_det.convert.LAYOUTS``.
        licence: of the weights, as the project states it: an SPDX identifier.
        url: as the project prints it.
        page: where the project prints it.
        pretraining: data, method and length, in words.
        top1: accuracy on ImageNet-1k in percent as the page states it: of a linear classifier on the frozen encoder, or
            of the network itself if it was trained with labels; None: it states none.
        megabytes: size of the file; None: not known.
        sha256: its first hexadecimal digits, as published; "": not published.
        md5: the same.
        note: what else should be known; "": nothing.
    """

    name: str
    project: str
    arch: str
    layout: str
    licence: str
    url: str
    page: str
    pretraining: str
    top1: float | None = None
    megabytes: float | None = None
    sha256: str = ""
    md5: str = ""
    note: str = ""

    @property
    def expected(self) -> dict[str, str]:
        """What is known of the file: name of a hash -> its first digits."""
        return {kind: digits for kind in ("sha256", "md5") if (digits := getattr(self, kind))}

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON, in the order of the attributes."""
        return asdict(self)


@functools.cache
def published_checkpoints() -> dict[str, Published]:
    """Name -> checkpoint, in the order of the list: a project's entries share what its group states."""
    found = {}
    for group in parse_yaml(LIST.read_bytes(), LIST):
        shared = {key: value for key, value in group.items() if key != "checkpoints"}
        for name, own in group["checkpoints"].items():
            values = shared | own
            values["url"] = values.pop("folder", "") + values["url"]
            found[name] = Published(name=name, **values)
    return found

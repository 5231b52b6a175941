"""What a checkpoint was found to be."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pretrain.encoders import EncoderSpec
from pretrain.files.atomic import sha256_of

from .conventions import Conventions


@dataclass
class Source:
    """What a checkpoint was found to be.

    Attributes:
        path: of the file; if a folder was named, of that in it.
        encoder: which one it is; of a network of timm a NamedEncoder with timm's name.
        layout: which project's it is, a name of ``layouts.LAYOUTS`` or "prefix".
        project: the same in words.
        location: where in the file it was: "keys/of/dictionaries/prefix.".
        names: of the state dict -> the file's, without prefix; without the counters that the file did not have.
        conventions: what the network expects of its surroundings.
        dropped: first part of the other names beside it (``fc``, ``projector``) -> how many there were.
        notes: what the user should know, a line each.
        pretraining: as :func:`metadata.pretraining_of` returns it.
    """

    path: Path
    encoder: EncoderSpec
    layout: str
    project: str
    location: str
    names: dict[str, str]
    conventions: Conventions
    dropped: dict[str, int]
    notes: list[str] = field(default_factory=list)
    pretraining: dict | None = None

    @property
    def arch(self) -> str:
        """The encoder's name, for ``pretrain.encoders.build_encoder``."""
        return self.encoder.name

    @cached_property
    def sha256(self) -> str:
        """Of the file, in hexadecimal. Computed when first asked for: it costs about as much time as reading did."""
        return sha256_of(self.path)

    def as_dict(self) -> dict:
        """Plain values for JSON, without the names."""
        keys = ("arch", "layout", "project", "location")
        return {
            "path": str(self.path),
            **{key: getattr(self, key) for key in keys},
            "conventions": self.conventions._asdict(),
            **{key: getattr(self, key) for key in ("dropped", "notes", "pretraining")},
        }

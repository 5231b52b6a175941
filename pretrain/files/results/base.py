"""What all kinds of results.json have in common: kind, version, reading, checking, writing."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from ..atomic import write_json
from ..schema import fault, maybe, read_json, whole
from ..version import version

VERSION = 1  # of results.json, written as "version"; files without are those of loco-det 0.1
_Loaded = TypeVar("_Loaded", bound="Results")


class NewerVersionError(ValueError):
    """A results.json was written by a later version of loco-det."""


def known(schema: Any, doc: str, load: Callable[[Any], Any] | None = None, default: Any = None) -> Any:
    """A field of a dataclass that is a key of results.json, null where its value is not known.

    Args:
        schema: of the value in JSON, as in :mod:`pretrain.files.schema`.
        doc: what the key holds, for the documentation.
        load: function from the value in JSON to that of the field; None: they are the same.
        default: of the field.
    """
    return field(default=default, metadata={"schema": maybe(schema), "doc": doc, "load": load})


@dataclass(kw_only=True)
class Results:
    """The results of one kind of run.

    Attributes:
        KIND: the key "kind".
        FIGURES: the key that holds the figures, which no file lacks.
    """

    KIND: ClassVar[str]
    FIGURES: ClassVar[str]

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """Key -> its type, as in :mod:`pretrain.files.schema`."""
        own = {"version": maybe(_is_version), "kind": maybe(lambda value: value == cls.KIND)}
        return own | {part.name: part.metadata["schema"] for part in dataclasses.fields(cls)}

    @classmethod
    def read(cls: type[_Loaded], path: str | os.PathLike) -> _Loaded:
        """Read a file; keys that it lacks are None, keys that are not known are passed over.

        Args:
            path: of results.json.

        Raises:
            OSError: if it cannot be read.
            NewerVersionError: if a later version of loco-det wrote it.
            ValueError: if it is damaged or of another kind; one line that names it.
        """
        content = checked_json(path)
        if (kind := kind_of(content)) != cls.KIND:
            raise ValueError(f"{path} has results of another kind: {kind}, not {cls.KIND}")
        return cls.from_json(content, path)

    @classmethod
    def from_json(cls: type[_Loaded], content: dict[str, Any], path: str | os.PathLike) -> _Loaded:
        """The results in the content of a file.

        Raises:
            ValueError: if a value has another type than its key's; one line with the name of the file and the key.
        """
        place = fault(content, cls.schema())
        if not place and content.get(cls.FIGURES) is None:
            place = cls.FIGURES
        if place:
            raise damaged(path, place)
        values = {part.name: content[part.name] for part in dataclasses.fields(cls) if part.name in content}
        loads = {part.name: part.metadata["load"] for part in dataclasses.fields(cls) if part.metadata["load"]}
        return cls(**{k: loads[k](v) if k in loads and v is not None else v for k, v in values.items()})

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        fields = {part.name: plain(getattr(self, part.name)) for part in dataclasses.fields(self)}
        return {"kind": self.KIND, "version": VERSION, "loco_det": version(), **fields}

    def write(self, path: str | os.PathLike) -> None:
        """Write the file whole, or leave what is there as it is.

        Raises:
            OSError: if it cannot be written.
            ValueError: if a number is not finite, which JSON does not have.
        """
        write_json(path, self.to_json())


def checked_json(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a results.json whose version is known; what is in it is not checked yet.

    Raises:
        OSError, ValueError: as :meth:`Results.read`.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise damaged(path, "content")
    found = content.get("version")
    if isinstance(found, int) and _is_version(found) and found > VERSION:
        raise NewerVersionError(
            f"{path} has version {found} of results.json, this loco-det reads up to {VERSION}: use the one that "
            "wrote it, or a later one"
        )
    return content


def kind_of(content: dict[str, Any]) -> str:
    """The kind of results in a file's content: "detection", "linear" or "knn"; older files do not all name it."""
    if content.get("kind") in ("detection", "linear", "knn"):
        return content["kind"]
    return next((kind for kind in ("linear", "knn") if content.get(kind) is not None), "detection")


def damaged(path: str | os.PathLike, place: str) -> ValueError:
    """The error of a file in which a value is not as it should be."""
    return ValueError(f"{path} is damaged ({place}): evaluate that run again")


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses become dicts, keys text."""
    if dataclasses.is_dataclass(value):
        return {part.name: plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _is_version(value: Any) -> bool:
    return whole(value) and value > 0

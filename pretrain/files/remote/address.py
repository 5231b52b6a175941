"""Addresses of files: which are ours to open, how messages show them, where the cache keeps their files."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from .. import StrPath

SCHEMES = ("https", "http", "file", "hf", "detectron2")
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"  # what detectron2:// stands for
CACHE = "~/.torch/iopath_cache"  # iopath's, unless $FVCORE_CACHE names another
HASH = re.compile(r"-([0-9a-f]{8})\.\w+(\.\w+)?$")  # at the end of a name: torch hub's convention
_SAFE = "%/:=&?~#+!$,;'@()*[]"  # what stays as it is in an address


def is_remote(name: StrPath) -> bool:
    """Whether a name is an address with one of the ``SCHEMES``, and not a path."""
    return os.fspath(name).partition("://")[0].lower() in SCHEMES and "://" in os.fspath(name)


def shown(name: StrPath) -> str:
    """An address for messages, without user, password and what is behind ``?``: these may be secrets. A path as it is.

    A Path has lost a slash of the address that it was made of: ``https:/host/file``; that is shown likewise.
    """
    text = os.fspath(name)
    match = re.match(r"(?i)(https?|hf|detectron2):/+", text)
    if not match:
        return text
    host, slash, path = text[match.end() :].partition("/")
    path, query, _ = path.partition("#")[0].partition("?")
    return f"{match[0]}{host.rpartition('@')[2].partition('?')[0]}{slash}{path}{query and '?...'}"


def escaped(url: str) -> str:
    """An address with spaces and letters beyond ASCII in it as a server wants to be asked for it."""
    return quote(url, safe=_SAFE)


def file_of(address: str) -> str:
    """The path that a ``file://`` address names.

    Raises:
        FileNotFoundError: if no such file is there.
        ValueError: if it names another machine.
    """
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{address}: a file of another machine; one of this is file:///path/of/it")
    path = url2pathname(parts.path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{address}: no such file")
    return path


def hash_in_name(name: str) -> str:
    """The first 8 hexadecimal digits of the SHA-256 that a file's name states; "" if it does not.

    Eight decimal digits state nothing: they may be a date or a count of steps.
    """
    match = HASH.search(name)
    return match[1] if match and not match[1].isdecimal() else ""


def place_of(url: str) -> Path:
    """The file in the cache for an address: in a folder of its own, so that no two addresses share a file."""
    parts = urlsplit(url)
    name = re.sub(r"[^\w.+=-]", "_", unquote(parts.path).rsplit("/", 1)[-1]).lstrip(".")[-100:] or "file"
    host = re.sub(r"[^\w.-]", "_", parts.hostname or "")
    folder = hashlib.sha256(url.partition("#")[0].encode()).hexdigest()[:16]
    return cache_folder() / "loco_det" / host / folder / name


def cache_folder() -> Path:
    """Where downloaded files are kept: ``$FVCORE_CACHE`` or ``~/.torch/iopath_cache``, as iopath and Detectron2 do."""
    return Path(os.environ.get("FVCORE_CACHE") or CACHE).expanduser()

"""A file of a server, whole or not at all: what a broken connection has left is a ``.part`` that the next try goes on
with, if the server says that the file is still the same."""

import contextlib
import datetime
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..atomic import FULL, named_errors, sha256_of, write_json
from .address import hash_in_name, shown
from .connection import CutError, UnreachableError, answer

WAITS = (1, 4, 16)  # seconds before each further try
HEAD = 512  # bytes by which a web page is recognised
BLOCK = 1 << 18
PAGE = re.compile(rb"\s*(<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)


class _ChangedError(Exception):
    """What is in the part is of no use any more."""


class Part:
    """The beginning of a file, and what the server said of it.

    Attributes:
        path: ``NAME.part``.
        notes: ``NAME.part.json``: "etag" or "modified", and "bytes".
    """

    def __init__(self, target: Path) -> None:
        """
        Args:
            target: the whole file.
        """
        self.path = target.with_name(f"{target.name}.part")
        self.notes = target.with_name(f"{target.name}.part.json")

    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def said(self) -> dict[str, Any]:
        """What the server said of the file; empty if nobody knows."""
        try:
            said = json.loads(self.notes.read_text())
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def request(self) -> dict[str, str]:
        """The headers that ask for the rest, on condition that the file is the same; none: for the whole file."""
        said, size = self.said(), self.size()
        same = said.get("etag") or said.get("modified")
        return {"Range": f"bytes={size}-", "If-Range": same} if size and same else {}

    def remove(self) -> None:
        """Remove both files."""
        for path in (self.path, self.notes):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def fetch(url: str, target: Path, expected: Mapping[str, str]) -> str:
    """Download a file, whole or not at all; beside it ``NAME.json`` says where it is from, with date and SHA-256.

    Args:
        url: with ``http://`` or ``https://``.
        target: the file to write; its folder is there, and nobody else writes to it.
        expected: as for :func:`pretrain.files.remote.local_copy`.

    Returns:
        The SHA-256, in hexadecimal.

    Raises:
        as :func:`pretrain.files.remote.local_copy`.
    """
    part = Part(target)
    _receive_patiently(url, part)
    with named_errors(target):
        size, digest = part.size(), sha256_of(part.path)
        try:
            check_hashes(url, part.path, digest, expected)
        except ValueError:
            part.remove()
            raise
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        write_json(sidecar(target), {"url": shown(url), "sha256": digest, "bytes": size, "date": now})
        os.replace(part.path, target)
        part.remove()
    return digest


def sidecar(target: Path) -> Path:
    """The file beside a downloaded one that says where it is from."""
    return target.with_name(f"{target.name}.json")


def check_hashes(url: str, path: Path, sha256: str, expected: Mapping[str, str]) -> None:
    """Compare a file with what is known of it.

    Args:
        url: of the file.
        path: of its copy.
        sha256: of that.
        expected: as for :func:`pretrain.files.remote.local_copy`; what the name states is added.

    Raises:
        ValueError: if it is another file.
    """
    wanted = {"sha256": hash_in_name(url.partition("?")[0]), **expected}
    for kind, digits in wanted.items():
        found = sha256 if kind == "sha256" else _hash(kind, path)
        if not found.startswith(digits.lower()):
            raise ValueError(
                f"{shown(url)}: not the file that was published: its {kind} begins with {found[: len(digits)]}, "
                f"expected {digits}; it was removed"
            )


def _hash(kind, path):
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _receive_patiently(url, part):
    """Receive the rest of the file, in several tries if the connection breaks."""
    for tried, wait in enumerate((*WAITS, None)):
        try:
            return _receive(url, part)
        except _ChangedError:
            part.remove()
            reason = "the file changes on the server"
        except CutError as error:
            reason = str(error)
        except UnreachableError as error:
            if not tried:  # it was never there
                raise ConnectionError(f"{shown(url)}: {error}; name a file that you have by its path") from None
            reason = str(error)
        except OSError as error:
            if error.errno not in FULL or shown(url) in str(error):
                raise
            more = f"{error.strerror} for {shown(url)}: $FVCORE_CACHE names another folder"
            raise OSError(error.errno, more, str(part.path.parent)) from None
        if wait is None:
            there = f"{_megabytes(part.size())} are kept, the same command goes on from there"
            kept = f"; {there}" if part.request() else ""
            raise ConnectionError(f"{shown(url)}: {reason}, and {len(WAITS)} more tries did not help{kept}")
        time.sleep(wait)


def _receive(url, part):
    """One try."""
    with answer(url, part.request()) as response:
        begin, total = _beginning(response, part)
        if begin == total:
            return
        if not begin and response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise _page(url)
        _check_space(url, part.path.parent, total, begin)
        with contextlib.ExitStack() as stack:
            file = None
            bar = stack.enter_context(_progress(url, begin, total))
            for block in _blocks(response):
                if file is None:
                    if not begin and PAGE.match(block):
                        raise _page(url)
                    file = stack.enter_context(_opened(url, part, begin, response, total))
                with _full_disk(part):
                    file.write(block)
                bar.update(len(block))
    if total is None and not part.size():
        raise ValueError(f"{shown(url)}: an empty file")
    if total is not None and part.size() < total:
        raise CutError(f"the connection was cut at {_megabytes(part.size())} of {_megabytes(total)}")


def _beginning(response, part):
    """(how many bytes are there already, how many there will be or None), by the server's answer."""
    size, said = part.size(), part.said()
    place = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    total = int(place[2]) if place and place[2].isdigit() else None
    if response.status == 416:
        if size and size == total == said.get("bytes", total):
            return size, size
        raise _ChangedError
    if response.status == 206:
        agreed = all(said.get(key) == value for key, value in _validators(response).items() if key in said)
        if not place or not place[1] or int(place[1]) != size or not agreed or said.get("bytes", total) != total:
            raise _ChangedError
        return size, total
    length = response.headers.get("Content-Length", "")
    if length == "0":
        raise ValueError(f"{shown(response.url)}: an empty file")
    return 0, int(length) if length.isdigit() else None


def _validators(response):
    """By what the server will know whether the file is the same. A weak ETag is of no use for parts of a file."""
    etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    return {
        **({"etag": etag} if etag and not etag.startswith("W/") else {}),
        **({"modified": modified} if modified else {}),
    }


@contextlib.contextmanager
def _opened(url, part, begin, response, total):
    """The part, open for what is to come; on the disk at the end, also after an error."""
    with _full_disk(part):
        if not begin:
            part.remove()
            write_json(part.notes, {**_validators(response), **({} if total is None else {"bytes": total})})
    with _full_disk(part), open(part.path, "ab" if begin else "wb") as file:
        try:
            yield file
        finally:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def _full_disk(part):
    """A full disk is freed of the part."""
    try:
        with named_errors(part.path):
            yield
    except OSError as error:
        if error.errno in FULL:
            part.remove()
        raise


def _blocks(response):
    """The content, in pieces, as soon as they are there."""
    try:
        if head := response.read(HEAD):
            yield head
        while block := response.read1(BLOCK):
            yield block
    except (http.client.HTTPException, OSError) as error:
        raise CutError(f"the connection was cut ({' '.join(str(error).split()) or type(error).__name__})") from None


def _check_space(url, folder, total, begin):
    free = shutil.disk_usage(folder).free
    if total is not None and total - begin > free:
        needed = f"{shown(url)} needs {_megabytes(total - begin)}, {_megabytes(free)} are free"
        raise OSError(errno.ENOSPC, f"no space left for it: {needed}; $FVCORE_CACHE names another folder", str(folder))


def _progress(url, begin, total):
    name = shown(url).partition("?")[0].rsplit("/", 1)[-1]
    return tqdm(total=total, initial=begin, desc=name, unit="B", unit_scale=True, disable=None, leave=False)


def _page(url):
    return ValueError(
        f"{shown(url)}: a web page (HTML), not a checkpoint: open it in a browser, and name the file's own address"
    )


def _megabytes(size):
    return f"{size / 1e6:.1f} MB"

"""Addresses as iopath's path manager opens them: downloaded once, by one process, into the cache."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import OneDrivePathHandler, PathHandler, PathManager

from ..atomic import make_folder
from ..lock import lock_folder, unlock_folder
from .address import DETECTRON2, SCHEMES, file_of, place_of, shown
from .download import check_hashes, fetch, sidecar
from .hub import from_hub
from .messages import say

_one_thread = threading.Lock()  # the folder's lock is the process's


class AddressHandler(PathHandler):
    """Opens the addresses of ``address.SCHEMES`` for reading."""

    def _get_supported_prefixes(self) -> list[str]:
        return [f"{scheme}://" for scheme in SCHEMES]

    def _get_local_path(
        self, path: str, force: bool = False, expected: Mapping[str, str] | None = None, **kwargs: Any
    ) -> str:
        self._check_kwargs(kwargs)
        if path.startswith("file://"):
            return file_of(path)
        if path.startswith("hf://"):
            return from_hub(path)
        if path.startswith("detectron2://"):
            path = DETECTRON2 + path.removeprefix("detectron2://")
        elif path.startswith(OneDrivePathHandler.ONE_DRIVE_PREFIX):
            path = OneDrivePathHandler().create_one_drive_direct_download(path)
        return os.fspath(cached(path, expected or {}, force))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if mode not in ("r", "rb"):
            raise ValueError(f"{shown(path)}: addresses are read only, not opened with mode {mode!r}")
        return open(self._get_local_path(path, **kwargs), mode, buffering)


MANAGER = PathManager()  # of our own: other libraries share the global one
MANAGER.register_handler(AddressHandler())


def cached(url: str, expected: Mapping[str, str], force: bool = False) -> Path:
    """The file in the cache for an address, downloaded if it is not there.

    Args:
        url: with ``http://`` or ``https://``.
        expected: as for :func:`pretrain.files.remote.local_copy`.
        force: download it again.

    Raises:
        as :func:`pretrain.files.remote.local_copy`.
    """
    try:
        target = place_of(url)
    except ValueError:
        raise ValueError(f"{shown(url)}: an address that cannot be read: check it") from None
    if not force and _is_whole(url, target, expected):
        return target
    with _alone(url, target.parent):
        if force or not _is_whole(url, target, expected):  # another process may have had the same idea
            digest = fetch(url, target, expected)
            say(f"downloaded {shown(url)} ({target.stat().st_size / 1e6:.1f} MB) to {target}, SHA-256 {digest}")
    return target


def _is_whole(url: str, target: Path, expected: Mapping[str, str]) -> bool:
    """Whether a file is in the cache as it was downloaded; another one than expected is removed, with an error."""
    if not target.is_file():
        return False
    try:
        said = json.loads(sidecar(target).read_text())
        if target.stat().st_size != said["bytes"]:
            return False
        known = {kind: digits for kind, digits in expected.items() if kind == "sha256"}  # without reading the file
        check_hashes(url, target, said["sha256"], known)
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        return False
    except ValueError:
        target.unlink()
        raise
    return True


@contextlib.contextmanager
def _alone(url: str, folder: Path) -> Iterator[None]:
    """The folder for this process and thread alone; whoever has it is waited for."""
    with _one_thread:
        try:
            make_folder(folder)
        except OSError as error:
            why = f"the cache {folder} cannot be written ({error.strerror}): set FVCORE_CACHE to another folder"
            raise OSError(f"{shown(url)}: {why}") from None
        lock_folder(
            folder, lambda owner: say(f"{shown(url)}: another process{owner} downloads it: waiting until it is done")
        )
        try:
            yield
        finally:
            unlock_folder(folder)

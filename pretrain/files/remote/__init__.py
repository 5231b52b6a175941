"""Files named by an address: ``https://``, ``http://``, ``file://``, ``hf://`` and Detectron2's ``detectron2://``.

``local_copy`` gives the path of a local copy, downloading what is not in the cache yet. ``address`` reads and shows
addresses, ``connection`` asks servers, ``download`` writes a whole file or none, ``hub`` asks Hugging Face's library,
and ``handler`` gives all of this to iopath's path manager.
"""

import os
from collections.abc import Mapping

from .address import is_remote, shown

__all__ = ["is_remote", "local_copy", "shown"]


def local_copy(address: str, expected: Mapping[str, str] | None = None) -> str:
    """The local path of a file that an address names.

    Args:
        address: of which :func:`is_remote` is true.
        expected: name of a hash, "sha256" or "md5", -> its first hexadecimal digits, or all. A name that ends in
            ``-`` and 8 hexadecimal digits states the SHA-256, too.

    Returns:
        The path: that of a ``file://`` address, or of the file in the cache.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the address cannot be read, or what is there is no checkpoint: a web page, another file.
        OSError: if it cannot be downloaded or written. All errors are one line that names the address without secrets.
    """
    from .handler import MANAGER

    scheme, rest = address.split(":", 1)
    return os.fspath(MANAGER.get_local_path(f"{scheme.lower()}:{rest}", expected=dict(expected or {})))

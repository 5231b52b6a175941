"""Files of Hugging Face's hub, by its own library, in its own cache."""

import contextlib
import re
from pathlib import Path

from ..atomic import sha256_of
from .messages import say

ADDRESS = re.compile(r"hf://([^/@?#]+/[^/@?#]+)(?:@([^/?#]+))?/([^?#]+)")
BESIDE = "config.json"  # what transformers and timm say of the network


def from_hub(address: str) -> str:
    """The local path of ``hf://OWNER/REPO/FILE`` or ``hf://OWNER/REPO@REVISION/FILE``; its ``config.json`` comes along.

    Raises:
        FileNotFoundError: if there is no such repository, revision or file.
        ValueError: if the address has another form, or the library is not installed.
        OSError: if it cannot be downloaded.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise ValueError(f"{address}: expected hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE")
    try:
        from huggingface_hub import errors as refused
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
    except ModuleNotFoundError:
        raise ValueError(
            f"{address}: this needs huggingface_hub, which is not installed: pip install huggingface_hub"
        ) from None
    repo, revision, name = match.groups()
    try:
        there = isinstance(try_to_load_from_cache(repo, name, revision=revision), str)
        path = hf_hub_download(repo, name, revision=revision)
    except refused.LocalEntryNotFoundError:
        raise ConnectionError(f"{address}: no network, or the hub is down, and the file is not in its cache") from None
    except (refused.EntryNotFoundError, refused.RepositoryNotFoundError, refused.RevisionNotFoundError) as error:
        raise FileNotFoundError(f"{address}: {_first_line(error)}") from None
    except Exception as error:  # of the several libraries that it connects with
        raise OSError(f"{address}: {_first_line(error)}") from None
    with contextlib.suppress(Exception):  # there may be none
        hf_hub_download(repo, str(Path(name).with_name(BESIDE)), revision=revision)
    if not there:
        say(f"downloaded {address} to {path}, SHA-256 {sha256_of(path)}")
    return path


def _first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__

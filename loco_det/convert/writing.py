"""Files that are written whole or not at all, and errors that name what the user named."""

import hashlib
import os
import uuid
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(*paths):
    """Write files under temporary names beside their own, which they get when everything went well.

    Args:
        paths: of the files to write; what is there already is replaced, of all or of none. All but the last are small.

    Yields:
        list of Path: the temporary names, with the same suffixes (Detectron2 tells formats by them).

    Raises:
        OSError: if a file cannot get its name.
    """
    temporaries = [Path(path).parent / f".convert-{uuid.uuid4().hex}{Path(path).suffix}" for path in paths]
    try:
        yield temporaries
        before = [Path(path).read_bytes() if os.path.exists(path) else None for path in paths[:-1]]
        try:
            for temporary, path in zip(temporaries, paths, strict=True):
                with _naming(path):
                    os.replace(temporary, path)
        except BaseException:
            for path, content in zip(paths, before, strict=False):
                Path(path).unlink(missing_ok=True) if content is None else Path(path).write_bytes(content)
            raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def write(fill, temporary, path):
    """Let ``fill(file)`` write the binary file ``temporary``, down to the disk; OSError names ``path`` instead."""
    with _naming(path), open(temporary, "xb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def check_folder(checkpoint, output):
    """Refuse, before anything is read, a checkpoint that is not there, or a place that cannot be written to.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or the folder of ``output`` does not exist.
        ValueError: if ``output`` is a folder or the checkpoint itself.
    """
    if not os.path.exists(checkpoint):
        raise FileNotFoundError(f"{checkpoint}: no such file")
    if not os.path.isdir(Path(output).parent):
        raise FileNotFoundError(f"{output}: its folder does not exist, create it first")
    if os.path.isdir(output):
        raise ValueError(f"{output}: a folder, expected the name of a file to write")
    if os.path.exists(output) and os.path.samefile(output, checkpoint):
        raise ValueError(f"{output}: the checkpoint itself, choose another name")


def sha256_of(path):
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _naming(path):
    """Let a failure to write name ``path``, which the caller knows, and not the temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error
    except RuntimeError as error:  # torch's word for a full disk
        raise OSError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error

"""Several files that are written all or none, and a look at where they are to go."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.files.atomic import named_errors, remove_orphans, temporary_name
from pretrain.files.remote import is_remote

from ..checkpoints import check_named


@contextmanager
def staged(*paths: str | os.PathLike) -> Iterator[list[Path]]:
    """Write files under temporary names beside their own, which they get when everything went well.

    Args:
        paths: of the files to write; what is there already is replaced, of all or of none. All but the last are small.

    Yields:
        list of Path: the temporary names, with the same suffixes (Detectron2 tells formats by them).

    Raises:
        OSError: if a file cannot get its name.
    """
    for path in paths:
        remove_orphans(Path(path).parent)
    temporaries = [temporary_name(path) for path in paths]
    try:
        yield temporaries
        before = [Path(path).read_bytes() if os.path.exists(path) else None for path in paths[:-1]]
        try:
            for temporary, path in zip(temporaries, paths, strict=True):
                with named_errors(path):
                    os.replace(temporary, path)
        except BaseException:
            for path, content in zip(paths, before, strict=False):
                Path(path).unlink(missing_ok=True) if content is None else Path(path).write_bytes(content)
            raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def check_folder(checkpoint: str | os.PathLike, output: str | os.PathLike, by_name: bool = True) -> None:
    """Refuse, before anything is read or downloaded, a checkpoint that is not there, or a place that cannot be written.

    Args:
        checkpoint: path, address, or name.
        output: the file to write.
        by_name: whether ``checkpoint`` may be the name of a published one.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or the folder of ``output`` does not exist.
        ValueError: if ``output`` is a folder or the checkpoint itself.
    """
    found = check_named(checkpoint, by_name)
    if not (found or is_remote(checkpoint) or os.path.exists(checkpoint)):
        raise FileNotFoundError(f"{checkpoint}: no such file")
    if not os.path.isdir(Path(output).parent):
        raise FileNotFoundError(f"{output}: its folder does not exist, create it first")
    if os.path.isdir(output):
        raise ValueError(f"{output}: a folder, expected the name of a file to write")
    if os.path.exists(output) and os.path.exists(checkpoint) and os.path.samefile(output, checkpoint):
        raise ValueError(f"{output}: the checkpoint itself, choose another name")

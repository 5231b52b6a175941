"""Runs beneath a folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from pretrain.files.results import NewerVersionError

from .folder import Run, lost_run, read_run

FILES = ("metrics.json", "results.json")


def find_runs(roots: str | Path | Sequence[str | Path]) -> list[Run]:
    """Read every run at or beneath the given folders.

    Args:
        roots: a folder or a list of folders.

    Returns:
        list of Run, in the order of ``roots`` and of their paths; names are relative to what they have in common. What
        is missing, holds no run, or is damaged, stands in the list with its ``problem``, if there is a run beside it.

    Raises:
        FileNotFoundError: if a folder is not there or holds no run, and there is no other run.
        ValueError: as :func:`read_run`, if there is no other run.
    """
    runs: dict[Path, Run] = {}  # in the order of insertion, each folder once
    errors: list[Exception] = []
    for root in [roots] if isinstance(roots, str | Path) else roots:
        try:
            if not Path(root).is_dir():
                raise FileNotFoundError(f"{root} is not a folder")
            found = [Path(folder) for folder, _, files in os.walk(root) if not set(FILES).isdisjoint(files)]
            if not found:
                raise FileNotFoundError(
                    f"no runs at or beneath {root}: a run folder has a metrics.json or a results.json"
                )
        except FileNotFoundError as error:
            errors.append(error)
            runs[Path(root).resolve()] = lost_run(root, "no run" if Path(root).is_dir() else "missing")
            continue
        for folder in sorted(found):
            if folder.resolve() not in runs:
                try:
                    runs[folder.resolve()] = read_run(folder)
                except ValueError as error:
                    errors.append(error)
                    runs[folder.resolve()] = lost_run(
                        folder, "of a later version" if isinstance(error, NewerVersionError) else "damaged"
                    )
    if errors and all(run.problem for run in runs.values()):
        raise errors[0]
    if len(runs) > 1:
        common = os.path.commonpath(list(runs))
        for folder, run in runs.items():
            run.name = os.path.relpath(folder, common) if str(folder) != common else run.name
    return list(runs.values())

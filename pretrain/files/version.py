"""Which loco-det this is: its version, and in a checkout the commit."""

import functools
import importlib.metadata
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def version() -> str:
    """Such as "0.1.0", and in a checkout "0.1.0+g1a2b3c4"; ".dirty" at the end: with changes that are in no commit."""
    try:
        number = importlib.metadata.version("loco-det")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is on the path only
        number = "0.1.0"
    if not (ROOT / ".git").exists():
        return number
    commit = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return f"{number}+g{commit}{'.dirty' if changes else ''}" if commit else number


def _git(*arguments: str) -> str:
    """What git says, without the line's end; empty if there is none or it fails."""
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # of a hook
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=environment)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

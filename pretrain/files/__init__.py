"""Reading and writing files: whole files, locks, YAML, JSON, checkpoints, metrics, images, safe text."""

import os
from typing import TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

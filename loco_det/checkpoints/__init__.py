"""Encoder checkpoints by the names that they were published under, and the local file of whatever a user names.

``published`` reads the list, ``checkpoints.yaml``; ``location`` finds a path, an address or a name of the list.
"""

from .location import check_named, local_checkpoint
from .published import Published, published_checkpoints

__all__ = ["Published", "check_named", "local_checkpoint", "published_checkpoints"]

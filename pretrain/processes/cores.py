"""How many CPU cores there are for this process."""

import os


def usable_cores() -> int:
    """Cores that this process may run on: a cluster's job may have fewer than the machine."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def default_workers(most: int) -> int:
    """Default number of a loader's worker processes: one a core, ``most`` at most."""
    return max(1, min(most, usable_cores()))

"""How long each test took, kept in pytest's cache: for a table, and to begin with the longest files.

``python tests/helpers/durations.py`` (``make durations``) prints the table. With several workers, whose tests are given
to them file by file, a long file that comes last would have one worker wait for the other.
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from fast import STARTS_PROCESSES

KEY = "loco_det/seconds"
ROOT = Path(__file__).resolve().parents[2]
SHOWN = 30


class Recorder:
    """Adds the seconds of this session's tests to those of earlier ones."""

    def __init__(self, config: pytest.Config):
        self.config, self.seconds = config, Counter()

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self):
        known = {**self.config.cache.get(KEY, {}), **{name: round(s, 3) for name, s in self.seconds.items()}}
        self.config.cache.set(KEY, {name: s for name, s in known.items() if (ROOT / file_of(name)).exists()})


def pytest_configure(config):
    if not hasattr(config, "workerinput") and hasattr(config, "cache"):
        config.pluginmanager.register(Recorder(config))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Where there are several workers: the longest files first, by what is known, or else by what they start."""
    if hasattr(config, "workerinput"):
        seconds = by_file(config.cache.get(KEY, {}))
        guess = by_file({item.nodeid: 1.0 if STARTS_PROCESSES & {*item.fixturenames} else 0.1 for item in items})
        items.sort(key=lambda item: -seconds.get(file_of(item.nodeid), guess[file_of(item.nodeid)]))


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def by_file(seconds: dict[str, float]) -> Counter:
    """Sum of the seconds of each file's tests."""
    found = Counter()
    for name, s in seconds.items():
        found[file_of(name)] += s
    return found


def table(seconds: dict[str, float]) -> str:
    """The longest files, with their longest tests, and the sum of each folder; in seconds of one worker."""
    files, folders, tests = by_file(seconds), Counter(), defaultdict(list)
    for name, s in seconds.items():
        tests[file_of(name)].append((s, name.partition("::")[2]))
        folders[str(Path(file_of(name)).parent)] += s
    lines = [f"{sum(files.values()):7.1f} s in all, {len(seconds)} tests"]
    lines += ["", "seconds  folder", *(f"{s:7.1f}  {folder}" for folder, s in folders.most_common())]
    lines += ["", "seconds  tests  file, and its longest test"]
    for file, s in files.most_common(SHOWN):
        longest, name = max(tests[file])
        lines.append(f"{s:7.1f}  {len(tests[file]):5}  {file}  ({longest:.1f} {name[:80]})")
    return "\n".join(lines)


if __name__ == "__main__":
    kept = ROOT / ".pytest_cache" / "v" / KEY
    if not kept.exists():
        sys.exit("error: no test has run yet: make test")
    print(table(json.loads(kept.read_text())))

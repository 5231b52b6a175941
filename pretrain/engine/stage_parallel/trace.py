"""What each process did when, in a few steps: a file for Chrome's or Perfetto's viewer, and a picture."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from matplotlib import rc_context
from matplotlib.figure import Figure

from ...files import StrPath
from ...files.atomic import write_whole
from ...processes.stage_mesh import StageMesh

COLOURS = {
    "forward": "#4c78a8", "loss": "#f2b134", "input gradient": "#72b7b2", "full backward": "#e45756",
    "update": "#54a24b", "wait": "#e6e6e6",
}  # fmt: skip
FIRST = 2  # steps of a run before the first one that is recorded: they are slower


class Event(NamedTuple):
    """A pass of one process.

    Attributes:
        kind: "forward", "loss", "input gradient", "full backward", "update" or "wait".
        name: of a segment, a unit or a message.
        iteration: in which it began.
        begin, end: in seconds since the epoch.
    """

    kind: str
    name: str
    iteration: int
    begin: float
    end: float


class Trace:
    """Records the passes of some iterations in the processes of the first column, and writes them.

    On a GPU it waits for each pass to end, so that the recorded steps are slower than others.
    """

    def __init__(self, mesh: StageMesh, start: int, steps: int, device: str) -> None:
        """
        Args:
            mesh: the processes.
            start: the run's first iteration.
            steps: number of iterations to record; 0: none.
            device: MODEL.DEVICE.
        """
        self._mesh, self._device = mesh, torch.device(device)
        self._events: list[Event] = []
        self._iterations = range(start + FIRST, start + FIRST + steps if mesh.copy == 0 else 0)
        self.iteration = start

    @contextlib.contextmanager
    def watch(self, kind: str, name: str) -> Iterator[None]:
        """A context that records a pass; see :data:`pretrain.learning.tape.Watch`."""
        if self.iteration not in self._iterations:
            yield
            return
        begin = time.time()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._events.append(Event(kind, name, self.iteration, begin, time.time()))

    def end_step(self, folder: StrPath, names: Sequence[str]) -> None:
        """After the last recorded iteration, bring the events to process 0, which writes trace.json and timeline.png.

        Args:
            folder: of the files.
            names: of the runs of stages.

        Raises:
            OSError: if a file cannot be written.
        """
        if not self._iterations or self.iteration != self._iterations[-1]:
            return
        mesh = self._mesh
        if mesh.stage:
            dist.send_object_list([self._events], dst=mesh.rank_of(0), group=mesh.aside)
            return
        events = {names[0]: list(self._events)}
        for stage in range(1, mesh.stages):
            box: list[Any] = [None]
            dist.recv_object_list(box, src=mesh.rank_of(stage), group=mesh.aside)
            events[names[stage]] = box[0]
        write_trace(os.path.join(folder, "trace.json"), events)
        write_timeline(os.path.join(folder, "timeline.png"), events)


def write_trace(path: StrPath, events: Mapping[str, Sequence[Event]]) -> None:
    """Write events in Chrome's trace format, which https://ui.perfetto.dev shows too.

    Args:
        path: the JSON file.
        events: those of each process, by its name.

    Raises:
        OSError: if it cannot be written.
    """
    start = min((event.begin for of in events.values() for event in of), default=0.0)
    lines: list[dict[str, Any]] = []
    for number, (name, of) in enumerate(events.items()):
        lines.append({"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": name}})
        lines += [
            {
                "ph": "X", "name": f"{event.kind} {event.name}".strip(), "cat": event.kind, "pid": number, "tid": 0,
                "ts": (event.begin - start) * 1e6, "dur": (event.end - event.begin) * 1e6,
                "args": {"iteration": event.iteration},
            }
            for event in of
        ]  # fmt: skip
    write_whole(path, json.dumps({"traceEvents": lines, "displayTimeUnit": "ms"}))


def write_timeline(path: StrPath, events: Mapping[str, Sequence[Event]]) -> None:
    """Draw events as bars, a row for each process.

    Args:
        path: the PNG file.
        events: those of each process, by its name; the first one is drawn at the bottom, as the lowest stages.

    Raises:
        OSError: if it cannot be written.
    """
    start = min((event.begin for of in events.values() for event in of), default=0.0)
    with rc_context({"font.size": 8}):
        figure = Figure(figsize=(11, 0.8 + 0.6 * len(events)), layout="constrained")
        axes = figure.subplots()
        for kind, colour in COLOURS.items():
            axes.barh(0, 0, color=colour, label=kind)  # for the legend, also of what does not occur
            for row, of in enumerate(events.values()):
                bars = [(event.begin - start, event.end - event.begin) for event in of if event.kind == kind]
                axes.broken_barh(bars, (row - 0.35, 0.7), facecolors=colour, edgecolors="white", linewidth=0.3)
        axes.set_yticks(range(len(events)), list(events))
        axes.set_ylim(-0.5, len(events) - 0.5)
        axes.set_xlabel("seconds")
        anchor = (0.5, 1.0 + 0.5 / len(events))
        axes.legend(loc="upper center", bbox_to_anchor=anchor, ncols=len(COLOURS), frameon=False)
        write_whole(path, lambda f: figure.savefig(f, format="png", dpi=130))

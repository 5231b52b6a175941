"""Tools that are run with a fault in them, and what they give without."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parent))  # test folders are no packages

from jobs import JOBS, begin, make_inputs

IMPORTED = ("loco_det.engine.trainer", "loco_det.convert", "loco_det.report.inspection", "loco_det.engine.predict",
            "loco_det.report.page", "pretrain.engine.trainer", "pretrain.model_card", "pretrain.readout.probe",
            "pretrain.readout.knn")  # fmt: skip
INJECT = Path(__file__).with_name("inject.py")


@pytest.fixture(scope="session")
def run(tool_server, tmp_path_factory):
    """As ``run_tool``, but what takes long to import is imported: hundreds of runs begin here."""
    with tool_server(tmp_path_factory.mktemp("run"), *IMPORTED) as run:
        yield lambda *command, **environment: run(*command, **{"OMP_NUM_THREADS": "1", **environment})


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Inputs of all tools; runs that are the inputs of others are in it, too, once :func:`whole` has made them."""
    root = tmp_path_factory.mktemp("root")
    make_inputs(root)
    return root


@pytest.fixture(scope="session")
def call(run, root, tmp_path_factory):
    """``call(name, out, fault="none", moment=0, options=()) -> CompletedProcess`` with operations in ``.trace``."""
    traces = tmp_path_factory.mktemp("traces")

    def call(name, out, fault="none", moment=0, options=()):
        trace = traces / "trace"
        trace.unlink(missing_ok=True)
        job = JOBS[name]
        done = run(INJECT, fault, moment, out, trace, f"tools/{job.tool}", *job.command(root, out), *options)
        done.trace = trace.read_text(errors="replace").splitlines()
        return done

    return call


@pytest.fixture(scope="session")
def whole(call, root):
    """``whole(name)``: result, operations and seconds of a run without any fault."""
    known = {}

    def whole(name):
        if name not in known:
            for other in {"report": ["detection", "pretraining"], "model card": ["pretraining"]}.get(name, []):
                whole(other)
            if name in ("predictions", "converter back", "low-shot summary"):
                whole("detection")
            out = root / name
            begin(name, root, out)
            done = call(name, out)
            assert done.returncode == 0, done.stderr
            (seconds,) = (float(line.split()[1]) for line in done.trace if line.startswith("seconds"))
            operations = [line for line in done.trace if not line.startswith("seconds")]
            known[name] = SimpleNamespace(result=JOBS[name].result(out), operations=operations, seconds=seconds)
        return known[name]

    return whole


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"

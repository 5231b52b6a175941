"""What is in a run's folder is damaged: --resume goes on from what is good, to the same bits."""

import struct
import zipfile

import pytest
from jobs import JOBS, begin, differences

from pretrain.files.checkpoints import checkpoint_names


def newest(out):
    return out / checkpoint_names(out)[0]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    """One bit in the middle of the largest tensor."""
    with zipfile.ZipFile(path) as archive:
        tensor = max(archive.infolist(), key=lambda record: record.file_size)
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", content, tensor.header_offset + 26)
    content[tensor.header_offset + 30 + name + extra + tensor.file_size // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "half a line in metrics.json": lambda out: (out / "metrics.json").open("a").write('{"iteration": 3, "lr": 0.'),
    "metrics.json cut in a line": lambda out: cut(out / "metrics.json"),
    "newest checkpoint cut": lambda out: cut(newest(out)),
    "newest checkpoint flipped": lambda out: flipped(newest(out)),
    "newest checkpoint empty": lambda out: newest(out).write_bytes(b""),
    "last_checkpoint cut": lambda out: cut(out / "last_checkpoint"),
    "last_checkpoint empty": lambda out: (out / "last_checkpoint").write_text(""),
    "last_checkpoint gone": lambda out: (out / "last_checkpoint").unlink(),
}
LEFT = (".config.12345678.tmp.yaml", ".model_final.12345678-99.12345678.tmp.pth", "checkpoint.tmp")


def slow(name, damage):
    """The half of what is the same code for both is tried with pretraining only."""
    return [pytest.mark.slow] if name == "detection" and damage.endswith(("cut", "empty", "line")) else []


@pytest.fixture(scope="module")
def stopped(call, whole, root, tmp_path_factory):
    """``stopped(name)``: a run that was killed before its last checkpoint, twice the same."""

    def stopped(name, out):
        operations = whole(name).operations
        begin(name, root, out)
        (moment,) = [i for i, line in enumerate(operations) if line.startswith("open") and "/.model_final." in line]
        call(name, out, "kill", moment)
        assert checkpoint_names(out) and not (out / "model_final.pth").exists()

    return stopped


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(name, damage, marks=[pytest.mark.fault(f"damage: {name}"), *slow(name, damage)])
        for name in ("pretraining", "detection", "linear probe")
        for damage in DAMAGES
        if name != "linear probe" or "checkpoint" not in damage or "last" in damage  # it keeps the newest one only
    ],
)
def test_damage_of_a_stopped_run(call, whole, stopped, out, name, damage):
    stopped(name, out)
    DAMAGES[damage](out)
    for left in LEFT:
        (out / left).write_text("x")
    done = call(name, out)
    assert done.returncode == 0, done.stderr
    found, expected = JOBS[name].result(out), whole(name).result
    if damage == "metrics.json cut in a line":  # what is lost there is lost
        found["lines"] = expected["lines"]
    assert differences(found, expected) == []


@pytest.mark.fault("damage: linear probe")
@pytest.mark.parametrize("damage", [cut, flipped])
def test_the_only_checkpoint_of_a_probe(call, stopped, out, damage):
    stopped("linear probe", out)
    damage(newest(out))
    before = {path: path.read_bytes() for path in out.glob("model_*.pth")}
    done = call("linear probe", out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "start anew without --resume" in done.stderr
    assert {path: path.read_bytes() for path in out.glob("model_*.pth")} == before


@pytest.mark.fault("damage: kNN")
@pytest.mark.parametrize("damage", [cut, flipped])
def test_a_cache_of_features(call, whole, root, out, damage):
    whole("kNN")
    begin("kNN", root, out)
    assert call("kNN", out).returncode == 0
    damage(out / "features.pth")
    done = call("kNN", out)
    assert done.returncode == 0 and "cannot be used" in done.stdout, done.stderr
    assert differences(JOBS["kNN"].result(out), whole("kNN").result) == []

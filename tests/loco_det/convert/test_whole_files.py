"""Files are written whole or not at all, and only where they may be."""

import errno
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from weights import SMALL, random_weights, save

from loco_det.convert import VerificationError, check, conversion, convert, convert_back


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint that converts in no time."""
    return save(random_weights(SMALL), tmp_path_factory.mktemp("small"))


@pytest.fixture
def older(tmp_path):
    """``older(call, error, match)``: the call fails, and the older files of both names are what they were."""
    contents = {"out.pkl": "older weights", "out.yaml": f"{conversion.HEADER}\nolder: config"}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)

    def fails(call, error, match=None):
        with pytest.raises(error, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == contents

    return fails


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(content, file):
    file.write(b"half of it")
    full()


def torchs_full(content, file):
    file.write(b"half of it")
    raise RuntimeError("unexpected pos 64 vs 0")  # torch's zip writer


@pytest.mark.parametrize("step", [(pickle, "dump", half_written), (os, "fsync", full), (os, "replace", full)])
def test_a_full_disk_leaves_the_older_files(small, tmp_path, monkeypatch, older, step):
    monkeypatch.setattr(*step)
    name = "yaml" if step[1] == "replace" else "pkl"
    older(lambda: convert(small, tmp_path / "out.pkl"), OSError, rf"No space left on device: .*/out\.{name}")


def test_a_disk_that_is_full_after_the_weights_leaves_the_older_files(small, tmp_path, monkeypatch, older):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda *args: calls.append(args) or (len(calls) == 2 and full()))
    older(lambda: convert(small, tmp_path / "out.pkl"), OSError, r"No space left on device: .*/out\.yaml")


def replaces_one(monkeypatch):
    """The first file gets its name, the second does not."""
    calls, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *args: full() if calls else calls.append(replace(*args)))


def test_weights_that_do_not_get_their_name_leave_the_older_config(small, tmp_path, monkeypatch, older):
    replaces_one(monkeypatch)
    older(lambda: convert(small, tmp_path / "out.pkl"), OSError, r"No space left on device: .*/out\.pkl")


def test_weights_that_do_not_get_their_name_leave_no_config_alone(small, tmp_path, monkeypatch):
    replaces_one(monkeypatch)
    with pytest.raises(OSError, match=r"No space left on device: .*/out\.pkl"):
        convert(small, tmp_path / "out.pkl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["verify", "write_new", "to_detectron2", "_to_encoder_backbone"])
def test_an_interruption_leaves_the_older_files(tmp_path, tmp_path_factory, monkeypatch, older, step):
    def interrupted(*args):
        raise KeyboardInterrupt

    path = save(random_weights("resnet50x0.25" if step == "to_detectron2" else SMALL), tmp_path_factory.mktemp("a"))
    monkeypatch.setattr(conversion, step, interrupted)
    older(lambda: convert(path, tmp_path / "out.pkl"), KeyboardInterrupt)


def test_a_wrong_conversion_leaves_the_older_files(small, tmp_path, monkeypatch, older):
    right = conversion._to_encoder_backbone

    def wrong(weights):
        weights["conv1.weight"] = weights["conv1.weight"].flip(1)
        return right(weights)

    monkeypatch.setattr(conversion, "_to_encoder_backbone", wrong)
    older(lambda: convert(small, tmp_path / "out.pkl"), VerificationError, "^res2 differs")


def test_the_files_get_their_names_last_and_the_weights_after_their_config(small, tmp_path, monkeypatch):
    """Who finds new weights finds their config; nothing has a name before the proof."""
    events, replace, proof = [], os.replace, conversion.verify
    monkeypatch.setattr(conversion, "verify", lambda *args: events.append("verify") or proof(*args))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append(Path(b).name) or replace(a, b))
    convert(small, tmp_path / "out.pkl")
    assert events == ["verify", "out.yaml", "out.pkl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pkl", "out.yaml"]


@pytest.mark.parametrize("step", ["a full disk", "torch's word for it", "a wrong network", "an interruption"])
def test_the_way_back_leaves_the_older_file(small, tmp_path_factory, tmp_path, monkeypatch, older, step):
    there = convert(small, tmp_path_factory.mktemp("there") / "there.pkl")
    right = torch.save

    def wrong(weights, file):
        right(weights | {"conv1.weight": weights["conv1.weight"].flip(1)}, file)

    def interrupted(*args):
        raise KeyboardInterrupt

    save, error, match = {
        "a full disk": (half_written, OSError, r"No space left on device: .*/out\.pth"),
        "torch's word for it": (torchs_full, OSError, r"cannot write .*/out\.pth: unexpected pos 64 vs 0"),
        "a wrong network": (wrong, VerificationError, "^res2 differs"),
        "an interruption": (interrupted, KeyboardInterrupt, None),
    }[step]
    monkeypatch.setattr(torch, "save", save)
    older(lambda: convert_back(there.output, tmp_path / "out.pth"), error, match)


def test_check_leaves_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result, folder = check(small), sorted(small.parent.iterdir())
    assert list(tmp_path.iterdir()) == [] and folder == [small]
    assert (result.output, result.config_file, result.config["MODEL"]["WEIGHTS"]) == (None, None, "")
    converted = convert(small, tmp_path / "out.pkl")
    assert (result.differences, result.sha256) == (converted.differences, converted.sha256)
    assert (result.entries, abs(result.size - converted.size) < 200) == (converted.entries, True)
    with pytest.raises(ValueError, match="is a resnet18x0.25, not the resnet50"):
        check(small, arch="resnet50")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pkl", "out.yaml"]


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("out.pth", ValueError, r"out\.pth: the name must end in \.pkl, by which Detectron2 tells the format"),
        ("out", ValueError, r"out: the name must end in \.pkl"),
        ("a?b.pkl", ValueError, r"a\?b\.pkl: Detectron2 reads this name as a URL and drops a part of it"),
        ("no/out.pkl", FileNotFoundError, r"no/out\.pkl: its folder does not exist, create it first"),
        ("folder.pkl", ValueError, r"folder\.pkl: a folder, expected the name of a file to write"),
        ("source.pkl", ValueError, r"source\.pkl: the checkpoint itself, choose another name"),
        ("link.pkl", ValueError, r"link\.pkl: the checkpoint itself, choose another name"),
        ("foreign.pkl", ValueError, r"foreign\.yaml: would be replaced, and is no config of this converter's"),
        ("folded.pkl", ValueError, r"folded\.yaml: would be replaced"),
    ],
)
def test_names_that_cannot_be_written_are_refused_before_anything_is_read(tmp_path, monkeypatch, name, error, message):
    monkeypatch.setattr(conversion, "load_source", lambda *args, **options: pytest.fail("it was read"))
    (tmp_path / "source.pkl").write_text("a checkpoint")
    (tmp_path / "link.pkl").symlink_to("source.pkl")
    (tmp_path / "foreign.yaml").write_text("# my recipe")
    for folder in ("folder.pkl", "folded.yaml"):
        (tmp_path / folder).mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        convert(tmp_path / "source.pkl", tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "foreign.yaml").read_text() == "# my recipe"
    with pytest.raises(FileNotFoundError, match=r"missing\.pth: no such file"):  # before what is wrong with the name
        convert(tmp_path / "missing.pth", tmp_path / "no" / "out.pkl")


def test_a_base_that_is_missing_is_refused(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="no.yaml: no such config file"):
        convert(small, tmp_path / "out.pkl", base=tmp_path / "no.yaml")
    with pytest.raises(FileNotFoundError, match="no such config file, it is configs/detection/_base_coco.yaml now"):
        convert(small, tmp_path / "out.pkl", base="configs/_base_coco.yaml")
    assert list(tmp_path.iterdir()) == []

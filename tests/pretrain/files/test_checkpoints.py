"""Which checkpoint a run goes on from, for pretraining, readouts and detection alike."""

import logging
import pickle

import pytest
import torch
from fvcore.common.config import CfgNode as CN
from pickles import Calls

from pretrain.files.checkpoints import (
    checkpoint_names,
    differing_keys,
    items_of,
    newest_of_all,
    newest_readable,
    refuse_other_config,
    saved_config,
    write_config,
)


def save(folder, *iterations, **more):
    for i in iterations:
        name = "model_final.pth" if i == "final" else f"model_{i:07d}.pth"
        torch.save({"iteration": i, "weight": torch.full((64,), 3.0), **more}, folder / name)


def test_names_newest_first(tmp_path):
    save(tmp_path, 5, 1, "final", 30)
    for name in ("model_x.pth", "model_0000001.pth.tmp", "features.pth", "model_1.pkl", f"model_{'9' * 200}.pth"):
        (tmp_path / name).write_text("x")
    everything = ["model_final.pth", "model_0000030.pth", "model_0000005.pth", "model_0000001.pth"]
    assert checkpoint_names(tmp_path) == everything
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth\n")
    assert checkpoint_names(tmp_path) == everything[2:]  # the others are left over from another run
    assert checkpoint_names(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "last",
    ["/tmp/evil.pkl", "../other/model_0000009.pth", "evil.pkl", "\0", "", "model_0000009.pth/../../x", "x" * 9999],
)
def test_last_checkpoint_leads_nowhere_else(tmp_path, last):
    folder = tmp_path / "run"
    (tmp_path / "other").mkdir()
    folder.mkdir()
    save(tmp_path / "other", 9)
    save(folder, 1, 3)
    (folder / "evil.pkl").write_bytes(b"x")
    (folder / "last_checkpoint").write_text(last)
    assert checkpoint_names(folder) == ["model_0000003.pth", "model_0000001.pth"]
    assert newest_readable(folder)[0] == str(folder / "model_0000003.pth")


def flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((4,), 3.0).numpy().tobytes())] ^= 64
    path.write_bytes(data)


DAMAGE = {
    "flipped": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "empty": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: path.write_bytes(
        pickle.dumps({"iteration": 9, "a": Calls(open, path.with_name("ran"), "w")})
    ),
    "a torch file that runs code": lambda path: torch.save({"a": Calls(open, str(path.with_name("ran")), "w")}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
    "a tensor": lambda path: torch.save(torch.ones(3), path),
    "of somebody else": lambda path: torch.save({"state_dict": {}}, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_that_is_whole(tmp_path, caplog, damage):
    save(tmp_path, 1, 3, 5)
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    DAMAGE[damage](tmp_path / "model_0000005.pth")
    with caplog.at_level(logging.WARNING):
        path, content = newest_readable(tmp_path, lambda content: content["iteration"])
    assert path == str(tmp_path / "model_0000003.pth") and content["iteration"] == 3
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith(f"{tmp_path}: damaged, or not written by this project: model_0000005.pth (")
    assert line.endswith("; going on with model_0000003.pth") and len(line.splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    caplog.clear()
    newest_readable(tmp_path, lambda content: content["iteration"], warn=False)
    assert not caplog.records


def test_none_that_is_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume; leave out --resume"):
        newest_readable(tmp_path)
    (tmp_path / "model_0000001.pth").write_text("x")
    with pytest.raises(ValueError, match=r"none of model_0000001.pth \(.*\) can be read$"):
        newest_readable(tmp_path)
    with pytest.raises(ValueError, match=r"none of model_0000001.pth \(.*\) can be read: start anew without --resume"):
        newest_of_all(tmp_path)


def test_one_of_another_run_ends_the_search(tmp_path):
    save(tmp_path, 1, 3)

    def check(content):
        raise ValueError(f"another run's, of iteration {content['iteration']}")

    with pytest.raises(ValueError, match="another run's, of iteration 3"):
        newest_readable(tmp_path, check)


def test_configs_are_compared_by_value(tmp_path):
    cfg = CN({"A": {"B": (1, (2, 3)), "C": 0.1}, "D": "x", "OUTPUT_DIR": str(tmp_path), "T": {"E": 1, "F": 2}})
    write_config(cfg)
    saved = saved_config({"config": (tmp_path / "config.yaml").read_text()})
    assert dict(items_of(cfg)) == saved and saved["A.B"] == [1, [2, 3]]
    other = cfg.clone()
    other.A.C, other.D, other.T.E, other.OUTPUT_DIR = 0.2, "y", 5, "elsewhere"
    assert differing_keys(other, saved, {"OUTPUT_DIR", "T"}) == ["A.C", "D"]
    assert differing_keys(CN({"A": {"C": 0.1}}), saved, {"A.B", "T.E", "OUTPUT_DIR"}) == ["D", "T.F"]
    refuse_other_config("run", [])
    with pytest.raises(
        ValueError, match="run is a run with other values of A.C, D: resume it with its own config.yaml"
    ):
        refuse_other_config("run", ["A.C", "D"])


@pytest.mark.parametrize("text", ["A: [", "3", "A: !!python/name:os.system", "A: {1: 2}\nB: !!set {x}\n"])
def test_a_config_that_cannot_be_read_is_damage(text):
    with pytest.raises((TypeError, KeyError, AttributeError)):
        saved_config({"config": text})

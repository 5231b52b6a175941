"""Checkpoints: what is kept, what is resumed when files are damaged, and what is refused."""

import logging
import os

import pytest
import torch

from pretrain.config import get_cfg, value_of
from pretrain.engine.checkpoint import FREE, LATER_KEYS, AtomicCheckpointer
from pretrain.files.atomic import remove_leftovers
from pretrain.files.checkpoints import items_of
from pretrain.files.image_folders import names_digest
from pretrain.learning.build import build_learner


@pytest.fixture
def make(tmp_path):
    """``make(KEY=value) -> AtomicCheckpointer`` of a new process, with a linear layer of ones as its learner."""

    def checkpointer(images=10, names="", **keys):
        cfg = get_cfg()
        cfg.merge_from_list([part for pair in {"OUTPUT_DIR": str(tmp_path), **keys}.items() for part in pair])
        model = torch.nn.Linear(100, 100)
        torch.nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9)
        return AtomicCheckpointer(cfg, model, images, names, optimizer=optimizer)

    return checkpointer


def run(checkpointer, *iterations):
    """Save after some iterations; the weights are the iteration."""
    for i in iterations:
        torch.nn.init.constant_(checkpointer.model.weight, i)
        checkpointer.save(f"model_{i:07d}", iteration=i)


def files(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "last_checkpoint")


def test_everything_comes_back(make, tmp_path):
    first = make()
    first.model(torch.ones(100)).sum().backward()
    first.checkpointables["optimizer"].step()
    first.save("model_0000004", iteration=4)
    second = make()
    assert second.resume() == 4 and torch.equal(first.model.weight, second.model.weight)
    a, b = (c.checkpointables["optimizer"].state_dict()["state"] for c in (first, second))
    assert a.keys() == b.keys() and all(torch.equal(a[i]["momentum_buffer"], b[i]["momentum_buffer"]) for i in a)
    assert files(tmp_path) == ["model_0000004.pth"]


def test_the_last_ones_are_kept_those_of_before_a_resume_too(make, tmp_path):
    run(make(), 1, 3, 5)
    resumed = make()
    assert resumed.resume() == 5
    run(resumed, 7)
    assert files(tmp_path) == [f"model_000000{i}.pth" for i in (3, 5, 7)]
    resumed.save("model_final", iteration=8)
    assert len(files(tmp_path)) == 4 and make().resume() == 8
    again = make(**{"SOLVER.CHECKPOINTS_KEPT": 1})
    assert again.resume() == 8
    run(again, 9)
    assert files(tmp_path) == ["model_0000009.pth", "model_final.pth"]


def test_what_another_run_has_left_is_not_deleted(make, tmp_path):
    run(make(), 1, 3)
    run(make(**{"SOLVER.CHECKPOINTS_KEPT": 1}), 5, 7)  # started anew in the same folder
    assert files(tmp_path) == ["model_0000001.pth", "model_0000003.pth", "model_0000007.pth"]


def test_leftovers_of_a_longer_run_are_neither_resumed_nor_taken_for_newer(make, tmp_path):
    run(make(), 50, 60, 70)
    anew = make()
    run(anew, 1, 2, 3, 4)
    assert files(tmp_path) == [f"model_{i:07d}.pth" for i in (2, 3, 4, 50, 60, 70)]
    (tmp_path / "model_0000004.pth").write_bytes(b"")
    assert make().resume() == 3


def truncate(data):
    return data[: len(data) // 2]


def flip_a_bit(data):
    at = data.index(torch.full((50,), 5.0).numpy().tobytes())  # amid the weights: torch.load notices nothing
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda data: b"", lambda data: b"words\n" * 50, None])
def test_a_damaged_newest_falls_back_to_the_one_before(make, tmp_path, caplog, damage):
    run(make(), 1, 3, 5)
    newest = tmp_path / "model_0000005.pth"
    data = newest.read_bytes()
    newest.unlink()
    if damage:
        newest.write_bytes(damage(data))
    resumed = make()
    logging.getLogger("pretrain").propagate = True  # other tests have it log to a file
    with caplog.at_level(logging.WARNING):
        assert resumed.resume() == 3
    assert torch.equal(resumed.model.weight, torch.full((100, 100), 3.0))
    (warning,) = {record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING}
    assert f"damaged, or not written by this project: {newest.name} (" in warning
    (tmp_path / "model_0000003.pth").write_bytes(b"")
    assert make().resume() == 1
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    tried = ", ".join(rf"model_000000{i}.pth \(.+\)" for i in (5, 3, 1))
    with pytest.raises(ValueError, match=f"none of {tried} can be read"):
        make().resume()


@pytest.mark.parametrize("content", ["", "\0" * 20, "model_00"])
def test_a_damaged_last_checkpoint(make, tmp_path, content):
    run(make(), 1, 3)
    (tmp_path / "last_checkpoint").write_text(content)
    assert make().resume() == 3


def test_nothing_to_resume(make, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        make().resume()
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        make(OUTPUT_DIR=str(tmp_path / "nowhere")).resume()


def test_another_run_is_refused(make):
    run(make(), 1)
    with pytest.raises(ValueError, match=r"a run with other values of LOSS.TEMPERATURE, SOLVER.BASE_LR: resume it"):
        make(**{"SOLVER.BASE_LR": 1.0, "LOSS.TEMPERATURE": 0.5}).resume()
    with pytest.raises(ValueError, match="a run on 10 images, but DATASETS.TRAIN has 11"):
        make(images=11).resume()


def test_as_many_other_images_are_refused(make, tmp_path):
    cats, dogs = ([f"/data/{animal}/{i}.jpg" for i in range(3)] for animal in ("cat", "dog"))
    moved = [f"/elsewhere/cat/{i}.jpg" for i in range(3)]
    run(make(names=names_digest(cats, "/data")), 1)
    assert make(names=names_digest(moved, "/elsewhere/")).resume() == 1
    with pytest.raises(ValueError, match="a run on images of other names than those in DATASETS.TRAIN"):
        make(names=names_digest(dogs, "/data")).resume()
    content = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    del content["run"]["names"]  # of version 0.1
    torch.save(content, tmp_path / "model_0000001.pth")
    assert make(names=names_digest(dogs, "/data")).resume() == 1


@pytest.mark.parametrize(
    "key", ["MODEL.STAGE_PARALLEL.LATE", "MODEL.DECODER.POOL_FEATURES", "LOSS.VICREG", "SOLVER.SEQUENTIAL"]
)
def test_a_run_from_before_a_key_goes_on_with_what_it_did_then(make, tmp_path, key):
    assert dict(items_of(get_cfg()))[key] == LATER_KEYS[key]
    run(make(), 1)
    content = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    config = get_cfg().load_cfg(content["config"])
    group, _, name = key.rpartition(".")
    del value_of(config, group)[name]
    torch.save({**content, "config": config.dump()}, tmp_path / "model_0000001.pth")
    assert make().resume() == 1
    other = {"LOSS.VICREG": [1.0, 1.0, 1.0], "MODEL.DECODER.POOL_FEATURES": 512}.get(key, True)
    with pytest.raises(ValueError, match=f"a run with other values of {key}: "):
        make(**{key: other}).resume()


def test_what_does_not_change_the_weights_may_change(make):
    run(make(), 1)
    mine = dict(items_of(get_cfg()))
    for key in FREE - {"OUTPUT_DIR"}:
        other = {str: "other", list: ["res2"], bool: False}.get(type(mine[key]), None)
        other = mine[key] + type(mine[key])(1) if other is None else other
        assert make(**{key: other}).resume() == 1


def test_weights_that_are_not_finite_are_not_saved(make, tmp_path):
    checkpointer = make()
    run(checkpointer, 1)
    checkpointer.model.weight.data[3, 4] = float("nan")
    with pytest.raises(FloatingPointError, match="weight is not finite, so that model_0000002.pth is not written"):
        checkpointer.save("model_0000002", iteration=2)
    assert files(tmp_path) == ["model_0000001.pth"] and make().resume() == 1


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_leaves_the_older_files(make, tmp_path, monkeypatch, error):
    checkpointer = make()
    run(checkpointer, 1)

    def save(_, f):
        f.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError):
        run(checkpointer, 2)
    assert files(tmp_path) == ["model_0000001.pth"] and make().resume() == 1


def test_what_a_kill_has_left_is_removed(make, tmp_path, monkeypatch):
    checkpointer = make()
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        m.setattr(os, "unlink", lambda *_: None)  # as if killed
        run(checkpointer, 1)
    (left,) = files(tmp_path)
    assert left.startswith(".model_0000001.") and left.endswith(".tmp.pth")
    remove_leftovers(tmp_path)
    run(checkpointer, 2)
    assert files(tmp_path) == ["model_0000002.pth"]


def test_a_checkpoint_with_other_weights_is_refused_in_a_line(tmp_path):
    cfg = get_cfg()
    keys = ["MODEL.ENCODER", "resnet18x0.25", "MODEL.DECODER.HIDDEN_DIM", 8, "MODEL.DECODER.OUT_DIM", 4]
    cfg.merge_from_list([*keys, "OUTPUT_DIR", str(tmp_path)])
    checkpointer = AtomicCheckpointer(cfg, build_learner(cfg), 12)
    checkpointer.save("model_final", iteration=8)
    good = torch.load(tmp_path / "model_final.pth", weights_only=True)
    name = next(iter(good["model"]))
    for change in ({"model": []}, {"model": {}}, {"model": good["model"] | {name: torch.ones(1)}}, {"iteration": None}):
        torch.save(good | change, tmp_path / "model_final.pth")
        with pytest.raises(ValueError, match=r"model_final\.pth is not of this run \(.*\): start anew") as error:
            checkpointer.resume()
        assert "\n" not in str(error.value)


def test_a_run_that_was_killed_before_its_final_checkpoint_gets_it(make, tmp_path):
    run(make(), 3, 4)
    later = make()
    assert later.resume() == 4
    later.save_final(4)
    assert "model_final.pth" in files(tmp_path) and (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert content["iteration"] == 4 and (content["model"]["weight"] == 4).all()
    before = (tmp_path / "model_final.pth").stat().st_mtime_ns
    later.save_final(4)
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == before

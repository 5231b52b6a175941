"""A checkpoint is read once on its way through the converter, and so is each file beside it."""

import builtins
import collections
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from frameworks import transformers_classifier
from weights import SMALL, random_weights

import loco_det.convert.sources.checkpoint_file as checkpoint_file
import loco_det.convert.sources.source_type as source_module
import pretrain.files.atomic as atomic
import pretrain.files.safe_load as safe_load
from loco_det.convert import convert, convert_back, load_encoder, load_source, read_checkpoint
from pretrain.encoders import build_encoder

OWN = "own_reading.build"
SOURCES = ("checkpoint.pth", "pytorch_model.bin", "config.json", "preprocessor_config.json", "config.yaml")


@pytest.fixture
def passes(monkeypatch, tmp_path):
    """``passes()``: path below tmp_path -> how often it was read from its beginning to its end, by whom.

    ``safe_load.read`` opens a file several times (for its first bytes, the zip archive's checksums, its pickles, and
    torch's own opening) and counts as one. Everything else counts by each time that it opens the file.
    """
    counts, inside = collections.Counter(), []

    def counted(function, name):
        def call(path, *args, **kwargs):
            counts[Path(path).name, name] += 1
            inside.append(path)
            try:
                return function(path, *args, **kwargs)
            finally:
                inside.pop()

        return call

    def opening(function):
        def call(path, mode="r", *args, **kwargs):
            if not inside and isinstance(path, (str, Path)) and str(path).startswith(str(tmp_path)) and "r" in mode:
                counts[Path(path).name, "open"] += 1
            return function(path, mode, *args, **kwargs)

        return call

    monkeypatch.setattr(checkpoint_file, "read", counted(safe_load.read, "read"))
    monkeypatch.setattr(source_module, "sha256_of", counted(atomic.sha256_of, "sha256"))
    opener = opening(builtins.open)
    monkeypatch.setattr(builtins, "open", opener)
    monkeypatch.setattr(io, "open", opener)  # pathlib's
    return lambda: {key: count for key, count in counts.items() if key[0] in SOURCES}


ONCE = {("checkpoint.pth", "read"): 1, ("checkpoint.pth", "sha256"): 1}


def ours(weights):
    config = "MODEL: {PIXEL_MEAN: [1, 2, 3], PIXEL_STD: [4, 5, 6]}"
    return {"format": "loco-det pretraining", "encoder": SMALL, "config": config, "iteration": 9,
            "run": {"images": 5}, "model": {f"encoder.{name}": value for name, value in weights.items()}}  # fmt: skip


@pytest.mark.parametrize("layout", ["torchvision", "moco", "ours"])
def test_a_checkpoint_is_read_once_and_hashed_once(layout, passes, save, tmp_path):
    weights = random_weights(SMALL)
    moco = {"state_dict": {f"module.encoder_q.{name}": value for name, value in weights.items()}}
    path = save({"torchvision": weights, "moco": moco, "ours": ours(weights)}[layout])
    result = convert(path, tmp_path / "out.pkl")
    assert passes() == ONCE
    assert result.sha256 == atomic.sha256_of(path)


def test_a_readout_reads_it_once_and_hashes_it_once(passes, save):
    readable = load_encoder(save(ours(random_weights(SMALL))))
    assert readable.description()["sha256"] == readable.source.sha256
    assert passes() == ONCE


def test_nothing_is_hashed_that_nobody_asks_for(passes, save):
    load_source(save(random_weights(SMALL)))
    load_encoder(save(random_weights(SMALL)))
    assert passes() == {("checkpoint.pth", "read"): 2}


def test_code_of_ones_own_is_read_once(passes, save, tmp_path, monkeypatch):
    (tmp_path / "own_reading.py").write_text(
        f"from pretrain.encoders import build_encoder\ndef build():\n    return build_encoder('{SMALL}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = save(ours(build_encoder(SMALL).state_dict()) | {"encoder": OWN})
    readable = load_encoder(path, arch=OWN)
    assert readable.description()["arch"] == readable.source.arch == OWN
    assert passes() == ONCE
    sys.modules.pop("own_reading")


def test_the_way_back_reads_the_detector_and_its_config_once(passes, save, tmp_path):
    weights = {f"backbone.bottom_up.encoder.{name}": value for name, value in random_weights(SMALL).items()}
    (tmp_path / "config.yaml").write_text(f"MODEL: {{ENCODER: {SMALL}}}\n")
    convert_back(save({"model": weights}), tmp_path / "out.pth")
    config = {key: count for key, count in passes().items() if key[0] == "config.yaml"}
    assert set(config.values()) <= {1}
    assert {key: count for key, count in passes().items() if key not in config} == ONCE


def test_the_files_of_a_folder_are_read_once(passes, network, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(transformers_classifier(network("resnet18"), None), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    load_encoder(folder)
    assert passes() == {
        ("pytorch_model.bin", "read"): 1,
        ("config.json", "open"): 1,
        ("preprocessor_config.json", "open"): 1,
    }


def test_neighbours_are_kept(save, tmp_path):
    path = save(random_weights(SMALL))
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    file = read_checkpoint(path)
    assert file.json_beside("config.json") == {"architecture": "resnet18"}
    (tmp_path / "config.json").unlink()
    assert file.json_beside("config.json") == {"architecture": "resnet18"}
    assert file.json_beside("preprocessor_config.json") is None and file.run_config is None

"""Checkpoints with damaged bytes or other content: the same weights, or one line; never other weights.

Only zip archives have checksums (torch's since 1.6, npz): in the other formats a flip within a tensor cannot be seen.
"""

import io
import pickle
import shutil

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from cases import one_line
from mutate import VALUES, changed_bytes, changed_values
from pickles import torch_bytes
from torch import nn

from loco_det.convert import convert, load_encoder, load_source
from loco_det.engine.checkpoint import GuardedCheckpointer
from pretrain.config import get_cfg
from pretrain.encoders import build_encoder
from pretrain.engine.checkpoint import AtomicCheckpointer
from pretrain.files.checkpoints import newest_readable
from pretrain.files.safe_load import plain, read, read_own
from pretrain.learning.build import build_learner
from pretrain.model_card.run import PretrainingRun

EXPECTED = (ValueError, OSError)
TENSORS = [
    lambda t: t[:1], lambda t: t.half(), lambda t: t.double(), lambda t: t.int(), lambda t: t.to_sparse(),
    lambda t: t.fill_(float("nan")) if t.is_floating_point() else t, lambda t: t.to("meta"), lambda t: t.flatten(),
    lambda t: t.expand(3, *t.shape), lambda t: t.numpy(), lambda t: nn.Parameter(t.float()), lambda t: t.bool(),
    lambda t: torch.empty(0), lambda t: t.to(torch.complex64), lambda t: t.clone().requires_grad_(False),
]  # fmt: skip


def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "conv": torch.randn(4, 3, 3, 3, generator=generator),
        "steps": torch.tensor(7),
        "half": torch.ones(5).half(),
    }


def formats():
    tensors = weights()
    arrays, archive = {name: tensor.numpy() for name, tensor in tensors.items()}, io.BytesIO()
    np.savez(archive, **arrays)
    return {
        "zip": torch_bytes(tensors),
        "npz": archive.getvalue(),
        "legacy": torch_bytes(tensors, _use_new_zipfile_serialization=False),
        "pickle 2": pickle.dumps(arrays, protocol=2),
        "pickle 5": pickle.dumps({"model": arrays, "__author__": "x"}, protocol=5),
        "safetensors": safetensors.torch.save(tensors),
    }


def same(found, expected):
    """Whether two state dicts have the same names and bits."""
    found = {name: torch.as_tensor(value) for name, value in found.items()}
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items()
    )


def test_bytes_of_every_format(tmp_path, each_case):
    path, files, expected = tmp_path / "a.bin", formats(), weights()

    def case(rng):
        kind = rng.choice(list(files))
        path.write_bytes(changed_bytes(rng, files[kind]))
        for reader in (read, read_own):
            try:
                found = reader(path)
                plain(found)
            except EXPECTED as error:
                one_line(error)
            else:
                assert kind not in ("zip", "npz") or same(found, expected), f"{kind}: other weights"

    each_case(case, 700)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with two checkpoints of a small network."""
    folder, cfg = tmp_path_factory.mktemp("runs") / "run", get_cfg()
    keys = ["MODEL.ENCODER", "resnet18x0.25", "MODEL.DECODER.HIDDEN_DIM", 8, "MODEL.DECODER.OUT_DIM", 4]
    cfg.merge_from_list([*keys, "OUTPUT_DIR", str(folder)])
    torch.manual_seed(0)
    checkpointer = AtomicCheckpointer(cfg, build_learner(cfg), 12)
    checkpointer.save("model_0000003", iteration=3)
    checkpointer.save("model_final", iteration=8)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_damaged_runs_are_resumed_from_the_one_before_or_refused(copy, each_case):
    final, good = copy / "model_final.pth", (copy / "model_final.pth").read_bytes()
    expected = read(copy / "model_final.pth")["model"]
    expected = {name: value.clone() for name, value in expected.items()}

    def case(rng):
        final.unlink()  # the tensors of the one before may still be mapped
        final.write_bytes(changed_bytes(rng, good))
        path, content = newest_readable(str(copy), warn=False)
        assert same(content["model"], expected) and content["iteration"] == (8 if path == str(final) else 3)
        try:
            card = PretrainingRun(copy)
        except EXPECTED as error:
            one_line(error, copy)
        else:
            assert path == str(final) and card.iterations == 9

    each_case(case, 15)


def changed_content(rng, content):
    """A checkpoint with changed values, or changed tensors."""
    content = changed_values(rng, content, VALUES) if rng.random() < 0.6 else dict(content)
    model = content.get("model")
    if isinstance(model, dict) and model and rng.random() < 0.7:
        content["model"] = model = dict(model)
        name = rng.choice(list(model))
        if isinstance(model[name], torch.Tensor):
            model[name] = rng.choice(TENSORS)(model[name].clone())
    return content


def test_other_content_of_a_run(copy, each_case):
    final, cfg = copy / "model_final.pth", get_cfg()
    keys = ["MODEL.ENCODER", "resnet18x0.25", "MODEL.DECODER.HIDDEN_DIM", 8, "MODEL.DECODER.OUT_DIM", 4]
    cfg.merge_from_list([*keys, "OUTPUT_DIR", str(copy)])
    (copy / "model_0000003.pth").unlink()
    good = torch.load(final, weights_only=True)
    learner = build_learner(cfg)

    def case(rng):
        final.unlink()
        try:
            torch.save(changed_content(rng, good), final)
        except Exception:  # what torch cannot save is none of a file's
            final.touch()
        for act in (
            lambda: load_source(final),
            lambda: load_encoder(final),
            lambda: PretrainingRun(copy),
            lambda: AtomicCheckpointer(cfg, learner, 12).resume(),
        ):
            try:
                act()
            except EXPECTED as error:
                one_line(error)

    each_case(case, 8)


def test_damaged_sources_of_the_converter(tmp_path, each_case):
    network = build_encoder("resnet18x0.25")
    torch.save(network.state_dict(), tmp_path / "a.pth")
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    convert(str(tmp_path / "a.pth"), str(tmp_path / "a.pkl"))
    safetensors.torch.save_file(expected, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{name: value.numpy() for name, value in expected.items()})
    files = {kind: (tmp_path / f"a.{kind}").read_bytes() for kind in ("pth", "pkl", "npz", "safetensors")}

    def case(rng):
        kind = rng.choice(list(files))
        path = tmp_path / f"b.{kind}"
        path.unlink(missing_ok=True)
        path.write_bytes(changed_bytes(rng, files[kind]))
        try:
            _, found = load_source(path)
        except EXPECTED as error:
            one_line(error, path)
        else:
            assert kind not in ("pth", "npz") or same(found, expected), f"{kind}: other weights"

    each_case(case, 60)


def test_other_content_of_networks_of_timm(tmp_path, each_case):
    """Names, tensors, and what says which network it is: another one is refused, or it is the same network."""
    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=12).state_dict()
    content, path = {"model": weights, "arch": "vit_tiny_patch16_224", "epoch": 3}, tmp_path / "a.pth"

    def case(rng):
        path.unlink(missing_ok=True)
        try:
            torch.save(changed_content(rng, content), path)
        except Exception:  # what torch cannot save is none of a file's
            path.touch()
        try:
            source, found = load_source(path)
        except EXPECTED as error:
            one_line(error, path)
        else:
            assert source.arch == "vit_tiny_patch16_224" and found.keys() == weights.keys()

    each_case(case, 30)


class Detector(nn.Module):
    """As much of a detector as GuardedCheckpointer asks for."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_weights_of_a_detector(tmp_path, each_case):
    state = {name: value.clone() for name, value in Detector().state_dict().items()}
    arrays = {name: value.numpy() for name, value in state.items()}
    content = {"model": state, "iteration": 3}

    def case(rng):
        path, model, kind = tmp_path / rng.choice(["a.pth", "a.pkl"]), Detector(), rng.random()
        path.unlink(missing_ok=True)
        if kind < 0.5:
            data = torch_bytes(content) if path.suffix == ".pth" else pickle.dumps({"model": arrays, "__author__": "x"})
            path.write_bytes(changed_bytes(rng, data))
        else:
            try:
                path.write_bytes(torch_bytes(changed_content(rng, content)))
            except Exception:  # what torch cannot save is none of a file's
                path.touch()
        try:
            GuardedCheckpointer(model).load(str(path), checkpointables=[])
        except EXPECTED as error:
            one_line(error, path)
        else:
            assert path.suffix == ".pkl" or kind >= 0.5 or same(model.state_dict(), state), "other weights"

    each_case(case, 200)

"""Every key of the config changes what is learned or written; a step that goes wrong is not taken."""

import json
import logging
import os
import signal
import time

import pytest
import torch
from noise import write_noise_images
from PIL import Image

from pretrain.config import check, get_cfg
from pretrain.engine import precision
from pretrain.engine.checkpoint import FREE
from pretrain.engine.estimate import TimeEstimate
from pretrain.engine.trainer import FEATURES_OF_IMAGE, Trainer
from pretrain.files.checkpoints import items_of, write_config
from pretrain.files.metrics import Metrics
from pretrain.learning.build import build_learner
from pretrain.readout.knn import knn_evaluator


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_noise_images(tmp_path_factory.mktemp("images"), 8)


def config(images, out, **keys):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    small = {"DATASETS.TRAIN": str(images), "OUTPUT_DIR": str(out), "MODEL.ENCODER": "resnet18", "INPUT.CROP_SIZE": 32,
             "MODEL.DECODER.HIDDEN_DIM": 16, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.EPOCHS": 1.0, "SOLVER.BASE_LR": 10.0,
             "SOLVER.WARMUP_EPOCHS": 0.0, "DATALOADER.NUM_WORKERS": 0}  # fmt: skip
    cfg.merge_from_list([part for pair in {**small, **keys}.items() for part in pair])
    check(cfg)
    return cfg


def make_trainer(cfg, resume=False):
    """As tools/pretrain.py makes it."""
    return Trainer(cfg, resume, knn_evaluator(cfg))


def train(cfg, save=False):
    """Two steps; returns the encoder's parameters as one vector."""
    torch.manual_seed(cfg.SEED)
    trainer = make_trainer(cfg)
    trainer.checkpointer.save_to_disk = save
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.learner.encoder.parameters()])


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    return train(config(images, out), save=True), out


CHANGES = {
    "SEED": 1,
    "INPUT.CROP_SIZE": 40,
    "INPUT.CROP_AREA": [0.5, 1.0],
    "INPUT.JITTER": [0.4, 0.4, 0.4, 0.1],
    "INPUT.JITTER_PROB": 0.0,
    "INPUT.GRAYSCALE_PROB": 1.0,
    "INPUT.BLUR_PROB": [1.0, 0.0],
    "INPUT.BLUR_SIGMA": [2.0, 3.0],
    "INPUT.SOLARIZE_PROB": [0.0, 1.0],
    "INPUT.ON_DEVICE": True,
    "MODEL.ENCODER": "resnet34",
    "MODEL.PIXEL_MEAN": [0.0, 0.0, 0.0],
    "MODEL.PIXEL_STD": [255.0, 255.0, 255.0],
    "MODEL.UNITS": [["res2"], ["res3"], ["res4"], ["res5"]],
    "MODEL.SHARED_GRADIENT": "upper",
    "MODEL.NOISE": 0.25,
    "MODEL.ZERO_INIT_RESIDUAL": True,
    "MODEL.DECODER.STAGES": 1,
    "MODEL.DECODER.CONV_BLOCKS": 0,
    "MODEL.DECODER.DOWNSAMPLE": False,
    "MODEL.DECODER.EXPANSION": 32,
    "MODEL.DECODER.MLP_LAYERS": 3,
    "MODEL.DECODER.HIDDEN_DIM": 24,
    "MODEL.DECODER.OUT_DIM": 64,
    "MODEL.DECODER.OUT_BN": False,
    "LOSS.NAME": "barlow_twins",
    "LOSS.TEMPERATURE": 0.5,
    "LOSS.SCALE": 0.5,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.IMS_PER_CHUNK": 2,
    "SOLVER.BASE_LR": 1.0,
    "SOLVER.BIAS_LR_FACTOR": 0.1,
    "SOLVER.MOMENTUM": 0.5,
    "SOLVER.WEIGHT_DECAY": 0.1,
    "SOLVER.EPOCHS": 2.0,
    "SOLVER.WARMUP_EPOCHS": 0.5,
}


@pytest.mark.parametrize(("key", "value"), CHANGES.items())
def test_key_changes_what_is_learned(images, reference, tmp_path, key, value):
    learned = train(config(images, tmp_path, **{key: value}))
    assert torch.isfinite(learned).all() and not torch.equal(learned, reference[0])


@pytest.mark.parametrize(
    ("key", "values", "others"),
    [
        ("LOSS.VICREG", ([25.0, 25.0, 1.0], [25.0, 25.0, 0.0]), {"LOSS.NAME": "vicreg"}),
        ("MODEL.DECODER.POOL_FEATURES", (0, 512), {"INPUT.CROP_SIZE": 64}),
        ("SOLVER.SEQUENTIAL", (False, True), {"MODEL.UNITS": CHANGES["MODEL.UNITS"], "SOLVER.EPOCHS": 2.0}),
        ("LOSS.LAMBDA", (0.1, 0.2), {"LOSS.NAME": "barlow_twins"}),
        ("MODEL.DECODER.TIE", (0.0, 1.0), {"MODEL.DECODER.STAGES": 1}),
        # 64 pixels: the CPU's bfloat16 gradient of a 3x3 conv of stride 2 on 1x1 pixels holds what the memory held
        ("SOLVER.AMP.ENABLED", (False, True), {"INPUT.CROP_SIZE": 64}),
    ],
)
def test_key_changes_what_is_learned_with_another(images, tmp_path, key, values, others):
    a, b = (train(config(images, tmp_path, **others, **{key: value})) for value in values)
    assert torch.isfinite(a).all() and torch.isfinite(b).all() and not torch.equal(a, b)


def test_the_same_config_learns_the_same(images, reference, tmp_path):
    assert torch.equal(train(config(images, tmp_path)), reference[0])


def test_recomputation_learns_the_same_bits(images, reference, tmp_path):
    assert torch.equal(train(config(images, tmp_path, **{"MODEL.RECOMPUTE": ["res2", "res3[:1]"]})), reference[0])


def test_compile_compiles_what_one_loss_reaches(images, tmp_path):
    segments = [build_learner(config(images, tmp_path, **{"MODEL.COMPILE": on})).segments for on in (False, True)]
    compiled = [[segment.module._compiled_call_impl is not None for segment in of] for of in segments]
    assert compiled == [[False] * 4, [True, False, False, True]]


def test_the_logged_learning_rate_is_that_of_the_weights(images, tmp_path):
    cfg = config(images, tmp_path, **{"SOLVER.BIAS_LR_FACTOR": 0.1, "SOLVER.LOG_PERIOD": 1})
    train(cfg)
    first = json.loads((tmp_path / "metrics.json").read_text().splitlines()[0])
    assert first["lr"] == pytest.approx(10.0 * 4 / 256)


@pytest.mark.parametrize("top", ["res2[:1]", "res5[:1]"])
def test_a_loss_on_a_part_of_a_stage(images, tmp_path, top):
    """The stem of ResNet-50 has 64 channels, its stage 256."""
    keys = {"MODEL.ENCODER": "resnet50", "MODEL.UNITS": [[top]], "SOLVER.EPOCHS": 0.5}
    assert torch.isfinite(train(config(images, tmp_path, **keys))).all()


@pytest.fixture
def labelled(images, tmp_path):
    """The images as two classes."""
    for i, path in enumerate(sorted(images.iterdir())):
        (tmp_path / "labelled" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "labelled" / "ab"[i % 2] / path.name).write_bytes(path.read_bytes())
    return tmp_path / "labelled"


def test_sigterm_in_knn_stops_at_once_and_the_run_goes_on(images, labelled, reference, tmp_path, monkeypatch, caplog):
    keys = {"KNN.TRAIN": str(labelled), "KNN.PERIOD": 0.5, "SOLVER.CHECKPOINT_PERIOD": 100}
    cfg = config(images, tmp_path / "out", **keys)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(Trainer, "_evaluate", lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60)))
        begun = time.monotonic()
        train(cfg, save=True)
    assert time.monotonic() - begun < 30
    assert caplog.text.count("SIGTERM: checkpoint written after iteration 0; go on with --resume") == 1
    assert [path.name for path in (tmp_path / "out").glob("*.pth")] == ["model_0000000.pth"]
    resumed = make_trainer(cfg, resume=True)
    resumed.train()
    encoder = torch.cat([p.detach().flatten() for p in resumed.learner.encoder.parameters()])
    assert resumed.start_iter == 1 and torch.equal(encoder, reference[0])


def test_knn_and_the_picture_of_losses(images, labelled, reference, tmp_path):
    out = tmp_path / "out"
    keys = {"KNN.TRAIN": str(labelled), "KNN.PERIOD": 0.5, "SOLVER.LOG_PERIOD": 1}
    assert torch.equal(train(config(images, out, **keys)), reference[0])  # looking on changes nothing
    rows = Metrics.read(out / "metrics.json").lines
    for stage in ("res2", "res3", "res4", "res5"):
        assert 0 <= rows[0][f"knn/{stage}-top1"] <= 100
    assert [(row["iteration"], "knn/res5-top1" in row, "total_loss" in row) for row in rows] == [(0, 1, 1), (1, 1, 1)]
    assert min(Image.open(out / "losses.png").size) > 300
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_trainer(config(images, out, **{"KNN.TRAIN": "/nowhere"}))
    with pytest.raises(ValueError, match="KNN.TRAIN is set: pass knn_evaluator"):
        Trainer(config(images, out, **keys))


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_one_of_two_types_for_the_whole_run(images, tmp_path, monkeypatch, fast):
    keys = {"INPUT.CROP_SIZE": 64, "SOLVER.CHECKPOINT_PERIOD": 1}
    expected = train(config(images, tmp_path / "expected", **keys, **{"SOLVER.AMP.ENABLED": fast}))
    auto = config(images, tmp_path / "auto", **keys, **{"SOLVER.AMP.ENABLED": "auto"})
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"amx_bf16"} if fast else {"avx2"})
    torch.manual_seed(auto.SEED)
    first = make_trainer(auto)
    write_config(first.cfg)
    first.max_iter = 1  # killed after the first of two iterations
    first.train()
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"avx2"} if fast else {"amx_bf16"})  # on another machine
    second = make_trainer(auto, resume=True)
    second.train()
    assert torch.equal(torch.cat([p.detach().flatten() for p in second.learner.encoder.parameters()]), expected)
    saved = torch.load(tmp_path / "auto" / "model_final.pth", weights_only=True)
    assert f"ENABLED: {str(fast).lower()}" in saved["config"] and auto.SOLVER.AMP.ENABLED == "auto"
    with pytest.raises(ValueError, match="a run with other values of SOLVER.AMP.ENABLED: "):
        make_trainer(config(images, tmp_path / "auto", **keys, **{"SOLVER.AMP.ENABLED": not fast}), resume=True)


def test_all_keys_are_tested():
    elsewhere = {
        "LOSS.LAMBDA",
        "LOSS.VICREG",
        "MODEL.DECODER.POOL_FEATURES",
        "SOLVER.SEQUENTIAL",
        "MODEL.DECODER.TIE",
        "SOLVER.AMP.ENABLED",
        "MODEL.COMPILE",
        "MODEL.STAGE_PARALLEL.LATE",
    }  # stage_parallel/
    assert {key for key, _ in items_of(get_cfg())} == {*CHANGES, *FREE, *elsewhere}


@pytest.mark.parametrize(("key", "value"), [("MODEL.DECODER.HIDDEN_DIM", 24), ("SOLVER.BASE_LR", 1.0), ("SEED", 3)])
def test_another_run_is_not_resumed(images, reference, key, value):
    with pytest.raises(ValueError, match=f"a run with other values of {key}: "):
        make_trainer(config(images, reference[1], **{key: value}), resume=True)


def estimate_of(trainer):
    return next(hook for hook in trainer._hooks if isinstance(hook, TimeEstimate))


def test_the_estimate_counts_knn(images, tmp_path):
    assert estimate_of(make_trainer(config(images, tmp_path))).extras == []
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for path in images.iterdir():
                (tmp_path / split / label / path.name).write_bytes(path.read_bytes())
    for test, passes in (("", 16), (str(tmp_path / "test"), 32)):
        knn = {"KNN.TRAIN": str(tmp_path / "train"), "KNN.TEST": test, "KNN.PERIOD": 0.5}
        estimate = estimate_of(make_trainer(config(images, tmp_path, **knn)))
        assert estimate.extras == [
            ("kNN", pytest.approx(2 * passes * FEATURES_OF_IMAGE / 4))
        ]  # twice; 4 images in a step


@pytest.mark.parametrize(("batch", "said"), [(64, 1), (8, 0)])
def test_a_recipe_for_gpus_is_named_before_data_are_read(tmp_path, caplog, batch, said):
    logging.getLogger("pretrain").propagate = True  # other tests have it log to a file
    cfg = config("/nowhere", tmp_path, **{"INPUT.CROP_SIZE": 224, "SOLVER.IMS_PER_BATCH": batch})
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        make_trainer(cfg)
    records = {id(record): record for record in caplog.records}  # a test before may have given loggers handlers
    texts = [record.getMessage() for record in records.values()]
    assert sum("two CPU cores take about 19 s for a step of 64 images" in text for text in texts) == said
    assert sum("configs/pretrain/cpu/resnet18_loco.yaml" in text for text in texts) == said


@pytest.fixture
def trainer(images, tmp_path):
    return make_trainer(config(images, tmp_path))


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.learner.named_parameters()}


def test_a_loss_that_explodes_is_not_learned_from(trainer, tmp_path):
    before = weights(trainer)
    trainer.cfg.SOLVER.MAX_LOSS = 0.5
    with pytest.raises(FloatingPointError, match=r"loss_res3 is [\d.]+, above SOLVER.MAX_LOSS 0.5, .* at iteration 0"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [("encoder.layer3", "res4", float("nan")), ("decoders.res5", "res5's decoder", -float("inf"))],
)
def test_a_gradient_that_is_not_finite_is_named_and_not_learned_from(trainer, module, name, value):
    before = weights(trainer)

    def spoil(parameter):
        parameter.grad[-1] = value

    next(trainer.learner.get_submodule(module).parameters()).register_post_accumulate_grad_hook(spoil)
    with pytest.raises(FloatingPointError, match=f"^the gradient of {name} is not finite at iteration 0: "):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


@pytest.mark.parametrize("optimizer", ["SGD", "LARS"])
def test_no_checkpoint_holds_what_comes_of_an_explosion(images, tmp_path, optimizer):
    cfg = config(images, tmp_path, **{"SOLVER.OPTIMIZER": optimizer, "SOLVER.BASE_LR": 1e30, "SOLVER.EPOCHS": 9.0,
                                      "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.CHECKPOINTS_KEPT": 20})  # fmt: skip
    with pytest.raises(FloatingPointError):
        train(cfg, save=True)
    for path in tmp_path.glob("*.pth"):
        model = torch.load(path, weights_only=True)["model"]
        assert all(torch.isfinite(value).all() for value in model.values()), path


def test_norm_of_the_gradient_is_logged(trainer):
    squares = []
    parameters = list(trainer.learner.parameters())
    trainer.optimizer.register_step_pre_hook(
        lambda *_: squares.append(sum(p.grad.double().square().sum() for p in parameters if p.grad is not None))
    )
    trainer.train()
    logged = [value for value, _ in trainer.storage.history("grad_norm").values()]
    assert logged == pytest.approx([float(square) ** 0.5 for square in squares], rel=1e-5)


def test_the_plan_is_logged(images, tmp_path, caplog):
    logging.getLogger("pretrain").propagate = True  # other tests have it log to a file
    cfg = config(images, tmp_path, **{"SOLVER.IMS_PER_CHUNK": 2, "SOLVER.BASE_LR": 0.5, "SOLVER.BIAS_LR_FACTOR": 0.1})
    with caplog.at_level(logging.INFO):
        train(cfg)
    assert (
        "2 iterations, 1 processes; images per step: 4, per process: 4, per chunk: 2; "
        "peak learning rate: 0.0078125 = 0.5 * 4 / 256" in caplog.text
    )


def test_a_failure_in_the_first_step_is_the_one_reported(images, tmp_path):
    bad = tmp_path / "images"
    bad.mkdir()
    for path in images.iterdir():
        (bad / path.name).write_bytes(path.read_bytes()[: 100 if path.stem in "0123" else None])
    with pytest.raises(OSError, match="images are unreadable, more than DATASETS.MAX_UNREADABLE"):
        train(config(bad, tmp_path / "out"))
    for path in bad.iterdir():
        path.write_bytes(b"")
    with pytest.raises(OSError, match="images in a row are unreadable"):
        train(config(bad, tmp_path / "out"))

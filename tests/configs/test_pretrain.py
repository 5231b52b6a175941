"""Every YAML: no key stands twice. Of pretraining: it says what the published recipe says, and every row trains."""

import copy
import functools
from pathlib import Path

import pytest
import torch
import yaml
from fvcore.common.config import CfgNode

import pretrain.learning.build as learner_module
from loco_det.runs.config_index import published_rows
from pretrain.config import check, value_of
from pretrain.config import get_cfg as pretrain_cfg
from pretrain.encoders import StageEncoder, build_encoder
from pretrain.engine.estimate import warning_of_size
from pretrain.engine.optim import build_optimizer
from pretrain.engine.trainer import STEP_SECONDS
from pretrain.files.checkpoints import items_of
from pretrain.learning.build import build_learner

ROOT = Path(__file__).resolve().parents[2]
ALL = sorted((ROOT / "configs").rglob("*.yaml"))
PRETRAIN = ROOT / "configs" / "pretrain"


class _Strict(yaml.SafeLoader):
    """A loader that refuses a key that stands twice, which yaml takes silently (the last one wins)."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice at {node.start_mark}"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.relative_to(ROOT / "configs").as_posix())
def test_no_key_stands_twice(path):
    yaml.load(path.read_text(), _Strict)


def test_the_check_for_keys_that_stand_twice_can_fail():
    with pytest.raises(AssertionError, match="stands twice"):
        yaml.load("MODEL:\n  NORM: BN\n  NORM: SyncBN\n", _Strict)


# --- pretraining: the published rows ----------------------------------------------------------------------------------

RESNET_STAGES = ["res2", "res3", "res4", "res5"]
PRESNET_STAGES = [*RESNET_STAGES, "res6", "res7"]
SIMCLR_HEAD = {"MODEL.DECODER.CONV_BLOCKS": 0}
DEEPER_MLP = {"MODEL.DECODER.MLP_LAYERS": 4}
SHUFFLENET, PRESNET = {"MODEL.ENCODER": "shufflenetv2_50"}, {"MODEL.ENCODER": "presnet50"}
TIED = {"MODEL.DECODER.STAGES": 1}


def loco(stages=RESNET_STAGES):
    return {"MODEL.UNITS": [list(pair) for pair in zip(stages, stages[1:], strict=False)]}


def gim(stages=RESNET_STAGES):
    return {"MODEL.UNITS": [[stage] for stage in stages]}


def end_to_end(stages=RESNET_STAGES):
    return {"MODEL.UNITS": [stages]}


def share(n):
    return {"MODEL.UNITS": [["res2", f"res3[:{n}]"], ["res3", f"res4[:{n}]"], ["res4", f"res5[:{n}]"], ["res5"]]}


LOCO_PAPER = {  # the first row of Table 1's ResNet-50, with what is not stated as in SimCLR
    **loco(),
    "DATASETS.TRAIN": "datasets/imagenet/train",
    "INPUT.CROP_SIZE": 224,
    "INPUT.CROP_AREA": [0.08, 1.0],
    "INPUT.JITTER": [0.8, 0.8, 0.8, 0.2],
    "INPUT.JITTER_PROB": 0.8,
    "INPUT.GRAYSCALE_PROB": 0.2,
    "INPUT.BLUR_PROB": [0.5, 0.5],
    "INPUT.BLUR_SIGMA": [0.1, 2.0],
    "INPUT.SOLARIZE_PROB": [0.0, 0.0],
    "MODEL.ENCODER": "resnet50",
    "MODEL.ZERO_INIT_RESIDUAL": True,
    "MODEL.SHARED_GRADIENT": "all",
    "MODEL.NOISE": 0.0,
    "MODEL.DECODER.STAGES": 0,
    "MODEL.DECODER.TIE": 0.0,
    "MODEL.DECODER.CONV_BLOCKS": 1,
    "MODEL.DECODER.DOWNSAMPLE": True,
    "MODEL.DECODER.EXPANSION": 0,
    "MODEL.DECODER.POOL_FEATURES": 0,
    "MODEL.DECODER.MLP_LAYERS": 2,
    "MODEL.DECODER.HIDDEN_DIM": 2048,
    "MODEL.DECODER.OUT_DIM": 128,
    "MODEL.DECODER.OUT_BN": True,
    "LOSS.NAME": "info_nce",
    "LOSS.TEMPERATURE": 0.1,
    "LOSS.SCALE": 1.0,
    "SOLVER.OPTIMIZER": "LARS",
    "SOLVER.IMS_PER_BATCH": 4096,
    "SOLVER.BASE_LR": 0.3,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-6,
    "SOLVER.EPOCHS": 800,
    "SOLVER.WARMUP_EPOCHS": 10,
    "SOLVER.SEQUENTIAL": False,
}
ABLATION = {"SOLVER.EPOCHS": 100}
BARLOW = {
    "INPUT.JITTER": [0.4, 0.4, 0.2, 0.1],
    "INPUT.BLUR_PROB": [1.0, 0.1],
    "INPUT.SOLARIZE_PROB": [0.0, 0.2],
    "MODEL.DECODER.CONV_BLOCKS": 0,
    "MODEL.DECODER.MLP_LAYERS": 3,
    "MODEL.DECODER.HIDDEN_DIM": 8192,
    "MODEL.DECODER.OUT_DIM": 8192,
    "MODEL.DECODER.OUT_BN": False,
    "LOSS.NAME": "barlow_twins",
    "LOSS.LAMBDA": 0.0051,
    "LOSS.SCALE": 0.024,
    "SOLVER.IMS_PER_BATCH": 2048,
    "SOLVER.BASE_LR": 0.2,
    "SOLVER.EPOCHS": 300,
}
VICREG = {"LOSS.NAME": "vicreg", "LOSS.VICREG": [25.0, 25.0, 1.0], "LOSS.SCALE": 1.0}
ADAMW = {
    "MODEL.ZERO_INIT_RESIDUAL": False,
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.EPOCHS": 300,
    "SOLVER.WARMUP_EPOCHS": 40,
}
ROWS = {  # published top-1, and in what the row differs from LoCo
    "imagenet/resnet50_simclr_800ep": (69.8, {**end_to_end(), **SIMCLR_HEAD}),
    "imagenet/resnet50_gim_800ep": (64.7, {**gim(), **SIMCLR_HEAD}),
    "imagenet/resnet50_loco_800ep": (69.5, {}),
    "imagenet/resnet50_loco_res2_800ep": (None, {"MODEL.UNITS": [["res2"], *loco()["MODEL.UNITS"]]}),
    "imagenet/shufflenetv2_50_simclr_800ep": (69.1, {**SHUFFLENET, **end_to_end(), **SIMCLR_HEAD}),
    "imagenet/shufflenetv2_50_gim_800ep": (63.5, {**SHUFFLENET, **gim(), **SIMCLR_HEAD}),
    "imagenet/shufflenetv2_50_loco_800ep": (69.3, SHUFFLENET),
    "imagenet/presnet50_simclr_100ep": (66.8, {**ABLATION, **PRESNET, **end_to_end(PRESNET_STAGES), **SIMCLR_HEAD}),
    "imagenet/presnet50_gim_100ep": (52.6, {**ABLATION, **PRESNET, **gim(PRESNET_STAGES), **SIMCLR_HEAD}),
    "imagenet/presnet50_loco_100ep": (66.6, {**ABLATION, **PRESNET, **loco(PRESNET_STAGES)}),
    "imagenet/resnet50_simclr_100ep": (65.7, {**ABLATION, **end_to_end(), **SIMCLR_HEAD}),
    "ablations/decoder/end_to_end_conv": (65.6, {**ABLATION, **end_to_end()}),
    "ablations/decoder/end_to_end_mlp": (67.1, {**ABLATION, **end_to_end(), **SIMCLR_HEAD, **DEEPER_MLP}),
    "imagenet/resnet50_gim_100ep": (60.9, {**ABLATION, **gim(), **SIMCLR_HEAD}),
    "ablations/decoder/local_none_sharing": (64.9, {**ABLATION, **SIMCLR_HEAD}),
    "ablations/decoder/local_conv": (65.1, {**ABLATION, **gim()}),
    "ablations/decoder/local_conv_no_downsampling": (63.6, {**ABLATION, **gim(), "MODEL.DECODER.DOWNSAMPLE": False}),
    "imagenet/resnet50_loco_100ep": (66.2, ABLATION),
    "ablations/decoder/local_2_conv": (65.8, {**ABLATION, **gim(), "MODEL.DECODER.CONV_BLOCKS": 2}),
    "ablations/decoder/local_1_stage": (65.8, {**ABLATION, **gim(), **SIMCLR_HEAD, "MODEL.DECODER.STAGES": 1}),
    "ablations/decoder/local_full_network": (65.8, {**ABLATION, **gim(), **SIMCLR_HEAD, "MODEL.DECODER.STAGES": -1}),
    "ablations/decoder/local_mlp": (62.3, {**ABLATION, **gim(), **SIMCLR_HEAD, **DEEPER_MLP}),
    "ablations/decoder/local_mlp_sharing": (67.5, {**ABLATION, **DEEPER_MLP}),
    "ablations/sharing/upper_gradient": (65.3, {**ABLATION, "MODEL.SHARED_GRADIENT": "upper"}),
    "ablations/sharing/tie_1e-4": (65.5, {**ABLATION, **gim(), **TIED, "MODEL.DECODER.TIE": 1e-4}),
    "ablations/sharing/tie_1e-3": (66.0, {**ABLATION, **gim(), **TIED, "MODEL.DECODER.TIE": 1e-3}),
    "ablations/sharing/tie_1e-2": (65.9, {**ABLATION, **gim(), **TIED, "MODEL.DECODER.TIE": 1e-2}),
    "ablations/sharing/1_block": (64.8, {**ABLATION, **share(1)}),
    "ablations/sharing/2_blocks": (65.3, {**ABLATION, **share(2)}),
    "imagenet/resnet50_blockwise_barlow_300ep": (
        70.48, {**BARLOW, **gim(), "MODEL.NOISE": 0.25, "MODEL.DECODER.EXPANSION": 2048}
    ),
    "imagenet/resnet50_blockwise_barlow_no_noise_300ep": (70.15, {**BARLOW, **gim(), "MODEL.DECODER.EXPANSION": 2048}),
    "ablations/blockwise/vicreg": (None, {**BARLOW, **gim(), **VICREG, "MODEL.DECODER.EXPANSION": 2048}),
    "ablations/blockwise/gsp": (None, {**BARLOW, **gim()}),
    "ablations/blockwise/lsp": (None, {**BARLOW, **gim(), "MODEL.DECODER.POOL_FEATURES": 2048}),
    "ablations/blockwise/sequential": (
        None,
        {**BARLOW, **gim(), "MODEL.DECODER.EXPANSION": 2048, "SOLVER.SEQUENTIAL": True, "SOLVER.EPOCHS": 4 * 300},
    ),
    "imagenet/resnet50_vicreg_1000ep": (73.2, {**BARLOW, **end_to_end(), **VICREG, "SOLVER.EPOCHS": 1000}),
    "imagenet/resnet50_barlow_300ep": (71.57, {**BARLOW, **end_to_end()}),
    "imagenet/resnet50_barlow_1000ep": (
        73.5,
        {**BARLOW, **end_to_end(), "LOSS.SCALE": 1.0, "SOLVER.BIAS_LR_FACTOR": 0.024, "SOLVER.EPOCHS": 1000},
    ),
    "imagenet/vit_small_loco_300ep": (
        None,
        {**ADAMW, "MODEL.ENCODER": "timm:vit_small_patch16_224", "SOLVER.IMS_PER_BATCH": 1024, "SOLVER.BASE_LR": 1e-4,
         "SOLVER.WEIGHT_DECAY": 0.1},
    ),
    "imagenet/convnext_tiny_loco_300ep": (
        None, {**ADAMW, "MODEL.ENCODER": "timm:convnext_tiny", "SOLVER.BASE_LR": 1.5e-4, "SOLVER.WEIGHT_DECAY": 0.05}
    ),
}  # fmt: skip
OTHERS = {
    "demo_loco": loco(),
    "demo_loco_long": loco(),
    "demo_random": {"MODEL.UNITS": []},
    "random": {"MODEL.UNITS": []},
}  # not from a paper
OTHERS["imagenet/resnet50_random"] = OTHERS["demo_random"]
OTHERS["cpu/resnet18_loco"] = OTHERS["demo_loco"]


@functools.lru_cache
def _pretraining_cfg(name):
    cfg = pretrain_cfg()
    cfg.merge_from_file(str(PRETRAIN / f"{name}.yaml"))
    check(cfg)
    return cfg


def pretraining_cfg(name):
    return _pretraining_cfg(name).clone()


def test_every_pretraining_config_is_in_these_tables():
    names = {path.relative_to(PRETRAIN).as_posix() for path in PRETRAIN.rglob("[!_]*.yaml")}
    assert names == {f"{name}.yaml" for name in (*ROWS, *OTHERS)}
    assert {name: {"MODEL.UNITS": pretraining_cfg(name).MODEL.UNITS} for name in OTHERS} == OTHERS


@pytest.mark.parametrize("name", ROWS)
def test_pretraining_recipes(name):
    top1, differences = ROWS[name]
    expected, cfg = {**LOCO_PAPER, **differences}, pretraining_cfg(name)
    assert {key: value_of(cfg, key) for key in expected} == expected
    assert cfg.OUTPUT_DIR == f"output/pretrain/{name}"
    path = PRETRAIN / f"{name}.yaml"
    first_line = path.read_text().splitlines()[0]
    assert first_line[0] == "#" and (f": {top1} top-1" if top1 else "no top-1 is ") in first_line
    assert {row.figure for row in published_rows(path)} == ({f"{top1} top-1"} if top1 else set())


def test_learning_rates_as_the_papers_state_them():
    """LoCo: 4.8 for 4096 images; Barlow Twins: 0.2 for weights and 0.0048 for biases and BN, for 256."""
    solver = pretraining_cfg("imagenet/resnet50_loco_800ep").SOLVER
    weights, biases = build_optimizer(solver, torch.nn.BatchNorm2d(2)).param_groups
    assert weights["lr"] == biases["lr"] == pytest.approx(4.8)
    solver = pretraining_cfg("imagenet/resnet50_barlow_1000ep").SOLVER
    weights, biases = build_optimizer(solver, torch.nn.BatchNorm2d(2)).param_groups
    assert (weights["lr"], biases["lr"]) == (pytest.approx(0.2 * 8), pytest.approx(0.0048 * 8))


def test_the_recipe_for_a_cpu_is_the_demos_with_larger_crops():
    cpu, demo = dict(items_of(pretraining_cfg("cpu/resnet18_loco"))), dict(items_of(pretraining_cfg("demo_loco")))
    assert {key for key in cpu if cpu[key] != demo[key]} == {"DATASETS.TRAIN", "INPUT.CROP_SIZE", "OUTPUT_DIR"}


@pytest.mark.parametrize("name", [*ROWS, *OTHERS])
def test_recipes_for_gpus_are_named_as_such_on_a_cpu(name):
    cfg = pretraining_cfg(name)
    size = cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.CROP_SIZE, cfg.INPUT.CROP_SIZE, STEP_SECONDS, "small.yaml"
    said = warning_of_size("cpu", *size)
    assert said is None if name.startswith(("demo_", "cpu/")) else said.endswith("--config-file small.yaml")
    assert warning_of_size("cuda", *size) is None


# --- pretraining: every row trains ------------------------------------------------------------------------------------

_encoder = functools.lru_cache(build_encoder)  # building one takes longer than a step on tiny images


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads gain nothing on tiny tensors, and wait for each other where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    _encoder.cache_clear()


def tiny_encoder(name):
    """An encoder with the stages and numbers of blocks of a real one, in a few thousand parameters."""

    def block(i, o, stride):
        conv = torch.nn.Conv2d(i, o, 3, stride, 1, bias=False)
        return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(o), torch.nn.ReLU(inplace=True))

    real, stages, below = _encoder(name), {}, 3
    for stage_name, stage in zip(real.stage_names, real.stages, strict=True):
        stages[stage_name] = torch.nn.Sequential(block(below, 8, 2), *(block(8, 8, 1) for _ in range(len(stage) - 1)))
        below = 8
    return StageEncoder(stages, [8] * len(stages), [2 ** (k + 1) for k in range(len(stages))])


@torch.no_grad()
def new_encoder(name):
    """A copy of the real encoder, with weights of its own."""
    encoder = copy.deepcopy(_encoder(name))
    for p in encoder.parameters():
        p *= 1 + 0.01 * torch.rand(())
    return encoder


def small(cfg):
    """The same method with narrow heads, for a batch of 4, and blocks that learn from the first step."""
    cfg.MODEL.DEVICE, cfg.MODEL.ZERO_INIT_RESIDUAL = "cpu", False
    cfg.MODEL.DECODER.HIDDEN_DIM, cfg.MODEL.DECODER.OUT_DIM = 16, 8
    cfg.SOLVER.IMS_PER_BATCH = 4
    return cfg


def views():
    """Two views of 4 random images."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pair = torch.cat([images, images + 0.1 * images.flip(0)])
    return pair.contiguous(memory_format=torch.channels_last)


def blocks_of(unit, encoder):
    """(stage, index) of the blocks of a unit such as ["res3", "res4[:1]"]."""
    found = []
    for part in unit:
        stage, _, cut = part.partition("[")
        size = len(encoder.stages[list(encoder.stage_names).index(stage)])
        found += [(stage, i) for i in (eval(f"range(size)[{cut}") if cut else range(size))]
    return found


def parameters_of(encoder):
    """(stage, index) of every block -> its parameters."""
    return {
        (name, i): list(block.parameters())
        for name, stage in zip(encoder.stage_names, encoder.stages, strict=True)
        for i, block in enumerate(stage)
    }


@functools.lru_cache
def train_two_iterations(dump):
    """What rows share that differ in their schedule only is not run again."""
    cfg = CfgNode.load_cfg(dump)
    torch.manual_seed(0)
    learner = build_learner(cfg)
    optimizer = build_optimizer(cfg.SOLVER, learner)
    for only in [unit[-1] for unit in cfg.MODEL.UNITS] if cfg.SOLVER.SEQUENTIAL else [None]:
        two_iterations_of(learner, optimizer, cfg, only)


def two_iterations_of(learner, optimizer, cfg, only):
    before = copy.deepcopy(learner.state_dict())
    names = {id(p): name for name, p in learner.named_parameters()}
    units = [unit for unit in cfg.MODEL.UNITS if only in (None, unit[-1])]
    reached = {block for unit in units for block in blocks_of(unit, learner.encoder)}
    for step in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED is not False):
            losses = learner.forward_backward(views(), only=only)
        for block, parameters in parameters_of(learner.encoder).items():
            for p in parameters:
                learns = p.grad is not None and 0 < p.grad.norm() < float("inf")
                assert learns if block in reached else p.grad is None, names[id(p)]
        optimizer.step()
        tie = {"tie"} if cfg.MODEL.DECODER.TIE else set()
        assert set(losses) == {unit[-1] for unit in units} | tie
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert not tie or (losses["tie"] > 0) == (step > 0)  # copies start equal to what they are tied to
    after = learner.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    for block, parameters in parameters_of(learner.encoder).items():
        for p in parameters:
            assert (names[id(p)] in changed) == (block in reached), names[id(p)]
    weights = {name for name, p in learner.decoders.named_parameters(prefix="decoders") if p.ndim > 1}
    averages = {name for name in after if "running" in name}
    if only:
        own = (f"decoders.{only}.", f"encoder.layer{int(only[3:]) - 1}.", *(["encoder.bn1."] if only == "res2" else []))
        weights, averages = ({n for n in names if n.startswith(own)} for names in (weights, averages))
        assert averages == {name for name in changed if "running" in name}
    assert weights | averages <= changed


@pytest.mark.parametrize("name", [*ROWS, *OTHERS])
def test_every_row_trains(name, monkeypatch):
    monkeypatch.setattr(learner_module, "build_encoder", new_encoder)
    cfg, default = small(pretraining_cfg(name)), pretrain_cfg()
    assert cfg.SOLVER.WARMUP_EPOCHS < cfg.SOLVER.EPOCHS
    cfg.OUTPUT_DIR, cfg.DATASETS, cfg.INPUT, cfg.DATALOADER = "", default.DATASETS, default.INPUT, default.DATALOADER
    for key in ("EPOCHS", "WARMUP_EPOCHS", "CHECKPOINT_PERIOD", "LOG_PERIOD"):
        cfg.SOLVER[key] = default.SOLVER[key]
    train_two_iterations(cfg.dump())


def test_residual_blocks_begin_as_identities():
    cfg = small(pretraining_cfg("imagenet/resnet50_loco_800ep"))
    cfg.MODEL.ZERO_INIT_RESIDUAL, cfg.MODEL.DECODER.STAGES = True, 1
    learner = build_learner(cfg)
    for block in (learner.encoder.layer1[0], learner.decoders["res3"][0][0]):  # and in the decoders' copies of stages
        assert block.bn3.weight.abs().max() == 0 and block.bn2.weight.min() == 1


def rules():
    """The first row of each rule: of units and of what else decides which loss reaches which stage."""
    found = {}
    for name, (_, differences) in ROWS.items():
        keys = ("MODEL.ENCODER", "MODEL.UNITS", "MODEL.SHARED_GRADIENT", "MODEL.NOISE", "MODEL.DECODER.STAGES")
        found.setdefault(str([{**LOCO_PAPER, **differences}[key] for key in keys]), name)
    return list(found.values())


@pytest.mark.parametrize("loss", ["info_nce", "barlow_twins", "vicreg"])
@pytest.mark.parametrize("name", rules())
def test_a_loss_reaches_its_unit_and_nothing_else(name, loss, monkeypatch):
    monkeypatch.setattr(learner_module, "build_encoder", tiny_encoder)
    cfg = small(pretraining_cfg(name))
    cfg.LOSS.NAME = loss
    cfg.MODEL.DECODER.TIE = 0.0  # the penalty, which is no unit's loss, would reach stages beyond the unit

    def learner_of(units):
        cfg.MODEL.UNITS = units
        torch.manual_seed(0)
        return build_learner(cfg)

    def gradients(learner):
        learner.zero_grad()
        losses = learner.forward_backward(views())
        assert losses and all(torch.isfinite(value) for value in losses.values())
        return {block: [p.grad for p in ps] for block, ps in parameters_of(learner.encoder).items()}

    units, heard = cfg.MODEL.UNITS, None
    learner = learner_of(units)
    for top, decoder in learner.decoders.items():  # of the other units the embeddings stay, but their gradient is 0
        decoder.register_forward_hook(lambda _, __, z, top=top: z if top == heard else z.detach() + 0 * z)
    for k, unit in enumerate(units):
        inside, above = (set(blocks_of(parts, learner.encoder)) for parts in (unit, sum(units[k + 1 :], [])))
        reached = inside - above if cfg.MODEL.SHARED_GRADIENT == "upper" else inside
        heard = unit[-1]
        for block, grads in gradients(learner).items():
            assert all((g is not None and g.any()) == (block in reached) for g in grads), (unit, block)
        for block, grads in gradients(learner_of([unit])).items():
            assert all((g is None) == (block not in inside) for g in grads), (unit, block)

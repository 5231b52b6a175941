"""No tensor of the CPU gets into a step on another device: shown without a GPU, by tests/helpers/one_device.py."""

import pytest
import torch
from detectron2.config import get_cfg as detectron2_config
from detectron2.utils.events import EventStorage
from noise import write_noise_images
from one_device import OneDevice, meta_for_gpu

from loco_det.config import add_loco_config
from loco_det.engine.trainer import Trainer as Detection
from pretrain.config import get_cfg
from pretrain.data.device_augment import DeviceAugment
from pretrain.engine.trainer import Trainer
from pretrain.files.shipped_configs import find_config
from pretrain.learning.small_maps import SmallMapConv2d

OPTIONS = {
    "plain": {},
    "chunks": {"SOLVER.IMS_PER_CHUNK": 2},
    "recomputed": {"MODEL.RECOMPUTE": ["res2", "res3[:1]"]},
    "noise": {"MODEL.NOISE": 0.25},
    "on the device": {"INPUT.ON_DEVICE": True, "INPUT.SOLARIZE_PROB": [1.0, 1.0], "INPUT.GRAYSCALE_PROB": 0.5},
    "all at once": {"INPUT.ON_DEVICE": True, "MODEL.NOISE": 0.25, "MODEL.RECOMPUTE": ["res2"],
                    "SOLVER.IMS_PER_CHUNK": 2},
    "tied": {"MODEL.DECODER.STAGES": 1, "MODEL.DECODER.TIE": 1.0},
    "Barlow Twins": {"LOSS.NAME": "barlow_twins", "MODEL.DECODER.EXPANSION": 32},
    "VICReg": {"LOSS.NAME": "vicreg", "MODEL.DECODER.CONV_BLOCKS": 0, "MODEL.DECODER.POOL_FEATURES": 512,
               "INPUT.CROP_SIZE": 64},
    "one after the other": {"MODEL.UNITS": [["res2", "res3"], ["res4", "res5"]], "SOLVER.SEQUENTIAL": True,
                            "MODEL.NOISE": 0.25},
    "end to end": {"MODEL.UNITS": [["res2", "res3", "res4", "res5"]], "SOLVER.OPTIMIZER": "AdamW"},
    "PResNet": {"MODEL.ENCODER": "presnet50", "SOLVER.OPTIMIZER": "SGD", "INPUT.CROP_SIZE": 64,
                "MODEL.UNITS": [["res6", "res7"]]},
    "ShuffleNet": {"MODEL.ENCODER": "shufflenetv2_50"},
}  # fmt: skip


def test_two_devices_are_noticed():
    with OneDevice() as mode:
        on_device, elsewhere = torch.zeros(3, device="meta"), torch.zeros(3)
        assert (on_device + torch.tensor(1.0)).device.type == "meta" and on_device.sum().item() == 1
        for operation in (torch.add, torch.dot, lambda a, b: torch.cat([a, b]), lambda a, b: a[b.long()]):
            with pytest.raises(RuntimeError, match="on cpu and meta"):
                operation(on_device, elsewhere)
    assert mode.operations > 2


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_of_pretraining_is_on_one_device(monkeypatch, tmp_path, options):
    """The trainer's own step, with augmentation, losses, gradients, checks of divergence and optimiser."""
    cfg = get_cfg()
    images = write_noise_images(tmp_path / "images", 4)
    keys = {"MODEL.DEVICE": "meta", "MODEL.ENCODER": "resnet18x0.5", "INPUT.CROP_SIZE": 32, "DATALOADER.NUM_WORKERS": 0,
            "MODEL.DECODER.HIDDEN_DIM": 16, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.EPOCHS": 2.0, "OUTPUT_DIR": tmp_path,
            "SOLVER.WARMUP_EPOCHS": 0.0, "DATASETS.TRAIN": images, **options}  # fmt: skip
    cfg.merge_from_list([part for key, value in keys.items() for part in (key, _plain(value))])
    # As on GPUs, where Module.to leaves the parameters the same objects: decoders are tied to the encoder's
    monkeypatch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)
    trainer = Trainer(cfg)
    assert not any(isinstance(module, SmallMapConv2d) for module in trainer.learner.modules())  # the CPU's
    trainer.batches, trainer.iter = iter(trainer.loader), 0
    with meta_for_gpu(monkeypatch) as mode, EventStorage():
        trainer.run_step()
    assert mode.operations > 300
    state = trainer.optimizer.state.values()
    assert {t.device.type for s in state for t in s.values() if isinstance(t, torch.Tensor) and t.dim()} <= {"meta"}


def _plain(value):
    return value if isinstance(value, bool | int | float | list) else str(value)


def test_augmentation_on_the_device_draws_on_the_cpu(monkeypatch):
    """The same random numbers as on a CPU, whatever the device."""
    augment, views = DeviceAugment(get_cfg().INPUT), torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    torch.manual_seed(0)
    augment(views)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    with meta_for_gpu(monkeypatch):
        assert augment(views.to("meta")).device.type == "meta"
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("name", ["demo_coco_loco_frozen", "coco_loco_frozen"])
def test_a_frozen_backbone_is_on_one_device(monkeypatch, name):
    """The folded copy and its check, and the FPN on it; proposals depend on values, which there are none of here."""
    cfg = detectron2_config()
    add_loco_config(cfg)
    cfg.merge_from_file(find_config(name))
    cfg.MODEL.DEVICE = "meta"
    model = Detection.build_model(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.SyncBatchNorm):
            module.eval()  # it trains on GPUs only
    with meta_for_gpu(monkeypatch) as mode:
        features = model.backbone(torch.zeros(1, 3, 64, 96, device="meta"))
    assert {f.device.type for f in features.values()} == {"meta"} and mode.operations > 50
    folded = model.backbone.bottom_up.forward.network
    assert not isinstance(folded, type(model.backbone.bottom_up.forward._unfolded))  # its check has passed

"""Checks of pretraining: one step against the CPU's in float64, its options, and a resumed run.

The tolerances, and why:

- *float32, losses 5e-5, gradients 2e-2* (relative; of the gradients the norm of the difference). A loss is a mean over
  all anchors: rounding leaves some 1e-6 of it. In the gradients a ReLU or a maximum switches where its inputs differ by
  less than rounding: a share of 1e-6 of all switches changes the norm by the root of that, 1e-3, and BN over a small
  batch amplifies it. The CPU's own float32 is off by 6e-6 and 4e-3 with this ResNet-50. In the small network of
  the smoke test, views in a wrong order change both by 1 and more, and one unit's lost gradient changes the gradients
  by 0.46 and more.
- *bfloat16, losses 2e-2, cosine of the gradients 0.9 and more*. bfloat16 has 8 bits, 4e-3 of each number. The losses
  average that; the CPU's are off by 4e-3. Gradients of single parameters are noise to a few per cent, so that the
  direction of all is compared; the CPU's cosine is 0.97. One unit's lost gradient gives 0.72 to
  0.89 in the smoke test's network.
- *compiled*: as float32, because compiled kernels only sum in another order.
- *chunks*: as float32. The reference has the same chunks, because BN sees one chunk at a time.
- *recomputed, with noise*: 1e-6. It is the same forward pass with the same random numbers and kernels; other numbers
  would change the losses by 0.4 in the smoke test.
- *augmentation*: 0.1 of 255. It is float32 arithmetic on numbers up to 1; hue has a quotient by a small difference.
- *resumed*: 0. The same bits, by deterministic kernels.
"""

import functools
import shutil
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck

from loco_det.demo_scenes.scenes import draw_scene
from pretrain.config import Config, check, get_cfg
from pretrain.data.device_augment import DeviceAugment
from pretrain.engine.trainer import Trainer
from pretrain.learning.build import build_learner
from pretrain.learning.learner import LocalLearner
from pretrain.learning.replay import RandomState

from .setting import Figure, Setting, deterministic, full_float32, nothing_compiled, relative

Step = tuple[dict[str, float], Tensor]  # losses; the gradients of all parameters, one after the other, on the CPU
LOSSES, GRADIENTS, BFLOAT16_LOSSES, BFLOAT16_COSINE = 5e-5, 2e-2, 2e-2, 0.9
SAME_PASS, PIXELS = 1e-6, 0.1
RESIDUAL = 0.2  # weight of the last BN of each residual branch


def config(setting: Setting, device: str, **keys: object) -> Config:
    """LoCo's config at the sizes of the setting; in ``keys`` "__" stands for a dot."""
    cfg = get_cfg()
    values = {
        "MODEL.DEVICE": device,
        "MODEL.ENCODER": setting.encoder,
        "INPUT.CROP_SIZE": setting.side,
        "SOLVER.IMS_PER_BATCH": setting.images,
        "SOLVER.WARMUP_EPOCHS": 0.0,
        "MODEL.DECODER.HIDDEN_DIM": 64 if setting.smoke else 2048,
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    cfg.merge_from_list([part for pair in values.items() for part in pair])
    check(cfg)
    return cfg


def learner_of(cfg: Config) -> LocalLearner:
    """The learner, with the same weights on every device.

    Residual branches are weak: those of a fresh ResNet-50 make the features of all images nearly the same, and BN then
    divides by a standard deviation of mostly rounding errors.
    """
    torch.manual_seed(0)
    learner = build_learner(cfg).train()
    for block in learner.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            torch.nn.init.constant_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight, RESIDUAL)
    return learner


def views_of(setting: Setting) -> Tensor:
    """(2B, 3, S, S) normalised views of generated scenes in channels_last: two crops of each, one of them flipped."""
    side, size = setting.side, (setting.side + 16, setting.side + 32)
    scenes = [torch.from_numpy(draw_scene(0, "unlabeled", i, size).image) for i in range(setting.images)]
    images = torch.stack(scenes).permute(0, 3, 1, 2).float() / 64 - 2
    views = torch.cat([images[..., :side, :side], images[..., 16:, 32:].flip(3)])
    return views.contiguous(memory_format=torch.channels_last)


def step(learner: LocalLearner, views: Tensor, chunk: int = 0, bfloat16: bool = False) -> Step:
    """One step, as the trainer makes it, without an optimiser."""
    first = next(learner.parameters())
    views = views.to(first.device, first.dtype)
    torch.manual_seed(1)  # of noise
    learner.zero_grad()
    with torch.autocast(views.device.type, torch.bfloat16, enabled=bfloat16):
        losses = learner.forward_backward(views, chunk)
    gradients = [p.grad.flatten().cpu() for p in learner.parameters() if p.grad is not None]
    return {name: loss.item() for name, loss in losses.items()}, torch.cat(gradients)


@functools.lru_cache(maxsize=4)
def reference(setting: Setting, chunk: int = 0) -> Step:
    """The step on the CPU in float64."""
    return step(learner_of(config(setting, "cpu")).double(), views_of(setting), chunk)


def compared(got: Step, wanted: Step, losses: float = LOSSES, gradients: float = GRADIENTS) -> list[Figure]:
    """Losses, the worst of them, and gradients, relative."""
    worst = max(relative(got[0][name], wanted[0][name]) for name in wanted[0])
    difference = (got[1].double() - wanted[1].double()).norm() / wanted[1].double().norm()
    return [Figure("losses", worst, losses), Figure("gradients", difference.item(), gradients)]


def float32(setting: Setting) -> list[Figure]:
    """A LoCo step in float32, without TF32, against the CPU's in float64."""
    with full_float32():
        got = step(learner_of(config(setting, setting.device)), views_of(setting))
    return compared(got, reference(setting))


def bfloat16(setting: Setting) -> list[Figure]:
    """A LoCo step under bfloat16 autocast, against the CPU's in float64."""
    got, wanted = (
        step(learner_of(config(setting, setting.device)), views_of(setting), bfloat16=True),
        reference(setting),
    )
    cosine = torch.nn.functional.cosine_similarity(got[1].double(), wanted[1].double(), dim=0).item()
    losses = compared(got, wanted, losses=BFLOAT16_LOSSES)[0]
    return [losses, Figure("cosine of gradients", cosine, BFLOAT16_COSINE, least=True)]


def compiled(setting: Setting) -> list[Figure]:
    """MODEL.COMPILE: decoders, and stages that one loss reaches."""
    with full_float32(), nothing_compiled(setting):
        got = step(learner_of(config(setting, setting.device, MODEL__COMPILE=True)), views_of(setting))
    return compared(got, reference(setting))


def chunks(setting: Setting) -> list[Figure]:
    """SOLVER.IMS_PER_CHUNK: half of the images at a time."""
    chunk = setting.images // 2
    with full_float32():
        got = step(learner_of(config(setting, setting.device)), views_of(setting), chunk)
    return compared(got, reference(setting, chunk))


def recomputed(setting: Setting) -> list[Figure]:
    """MODEL.RECOMPUTE and chunks with MODEL.NOISE, which need the device's random numbers once more."""
    views, found = views_of(setting), []
    with full_float32(), deterministic() as without:
        for chunk in (0, setting.images // 2):
            both = [
                step(
                    learner_of(config(setting, setting.device, MODEL__NOISE=0.25, MODEL__RECOMPUTE=parts)), views, chunk
                )
                for parts in ([], ["res2", "res3"])
            ]
            figures = compared(both[1], both[0], SAME_PASS, SAME_PASS)
            found += [f._replace(name=f"{f.name}, in chunks") for f in figures] if chunk else figures
        device = torch.empty(0, device=setting.device).device
        state = RandomState.now(device)
        first = torch.randn(1000, device=device)
        with state.restored():
            again = torch.randn(1000, device=device)
    found.append(Figure("random numbers", (first - again).abs().max().item(), 0.0))
    return [f._replace(text=", ".join(without)) for f in found]


def augmentation(setting: Setting) -> list[Figure]:
    """INPUT.ON_DEVICE: colour, blur and solarize on the device, with the same random numbers as on the CPU."""
    cfg = config(setting, setting.device, INPUT__SOLARIZE_PROB=[0.2, 0.2]).INPUT
    views = (views_of(setting) + 2).mul(64).round().to(torch.uint8)
    augment, made = DeviceAugment(cfg), []
    with full_float32():
        for device in ("cpu", setting.device):
            torch.manual_seed(2)
            made.append(augment(views.to(device)).cpu())
    return [Figure("pixels of 255", (made[0] - made[1]).abs().max().item(), PIXELS)]


def resumed(setting: Setting) -> list[Figure]:
    """A run of four iterations, and one that goes on after two: weights, BN's averages and optimiser bit for bit.

    With mixed precision on a GPU, noise, recomputation, chunks, and augmentation on the device.
    """
    folder = setting.folder / "resumed"
    images = folder / "images"
    images.mkdir(parents=True)
    for i in range(setting.images):
        Image.fromarray(draw_scene(1, "unlabeled", i, (96, 128)).image).save(images / f"{i:03}.png")
    side = min(setting.side, 96)

    def run(name: str, resume: bool) -> Trainer:
        cfg = config(
            setting, setting.device, OUTPUT_DIR=str(folder / name), DATASETS__TRAIN=str(images), INPUT__CROP_SIZE=side,
            SOLVER__IMS_PER_BATCH=setting.images // 2, SOLVER__EPOCHS=2.0, SOLVER__CHECKPOINT_PERIOD=2,
            INPUT__ON_DEVICE=True, MODEL__NOISE=0.25, MODEL__RECOMPUTE=["res2"], DATALOADER__NUM_WORKERS=0,
            SOLVER__IMS_PER_CHUNK=setting.images // 4, SOLVER__AMP__ENABLED=setting.device != "cpu",
        )  # fmt: skip
        torch.manual_seed(cfg.SEED)
        trainer = Trainer(cfg, resume)
        trainer.train()
        return trainer

    with deterministic() as without:
        whole = run("whole", resume=False)
        (folder / "half").mkdir()
        shutil.copy(folder / "whole" / "model_0000001.pth", folder / "half")
        torch.rand(7, device=setting.device)  # no generator's state is the one that the first run left
        half = run("half", resume=True)
    states = [{**t.learner.state_dict(), **_tensors(t.optimizer.state_dict())} for t in (whole, half)]
    different = sum(not torch.equal(value, states[1][name]) for name, value in states[0].items())
    text = "; ".join([f"{len(states[0])} tensors, from iteration {half.start_iter}", *without])
    return [Figure("different tensors", different, 0, text=text)]


def _tensors(state: dict) -> dict[str, Tensor]:
    """The tensors in an optimiser's state, by name."""
    return {
        f"{number} {key}": value
        for number, own in state["state"].items()
        for key, value in own.items()
        if isinstance(value, Tensor)
    }


CHECKS: dict[str, Callable[[Setting], list[Figure]]] = {
    "pretraining, float32": float32,
    "pretraining, bfloat16": bfloat16,
    "pretraining, compiled": compiled,
    "pretraining, chunks": chunks,
    "pretraining, recomputed": recomputed,
    "pretraining, augmentation": augmentation,
    "pretraining, resumed": resumed,
}

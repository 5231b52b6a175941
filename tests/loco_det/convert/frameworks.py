"""Checkpoints of frameworks, as in projects.py: detection, self-supervision and classification toolboxes."""

import argparse

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from project_parts import META, Nest, children, ddp, lightning, mlp, optimizer, state_dict_of, training, with_fc
from torch import nn
from torch.optim.swa_utils import AveragedModel

from loco_det.modeling.backbones import EncoderBackbone
from pretrain.encoders import build_encoder


def loco_det(q, k):
    encoder = build_encoder("resnet18")
    encoder.load_state_dict(with_fc(q).state_dict())
    model = Nest(encoder=encoder, decoders=Nest(res3=mlp("CRL"), res4=mlp("L")))
    return {"format": "loco-det pretraining", "encoder": "resnet18", "iteration": 9, "model": model.state_dict()}


def detectron2_resnet(source, cfg=None):
    """Detectron2's ResNet with a torchvision network's weights, filled module by module; without ``cfg`` ResNet-18."""
    if cfg is None:
        cfg = get_cfg()
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    net = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    pairs = [(net.stem.conv1, source.conv1, source.bn1)]
    for stage, layer in zip(net.stages, (source.layer1, source.layer2, source.layer3, source.layer4), strict=True):
        for block, b in zip(stage, layer, strict=True):
            pairs += [(getattr(block, f"conv{i}"), getattr(b, f"conv{i}"), getattr(b, f"bn{i}")) for i in (1, 2)]
            pairs += [(block.conv3, b.conv3, b.bn3)] if hasattr(b, "conv3") else []
            pairs += [(block.shortcut, *b.downsample)] if b.downsample else []
    for conv, weights, norm in pairs:
        conv.weight = weights.weight
        own = conv.norm.state_dict()  # FrozenBN's are without the counter
        conv.norm.load_state_dict({name: tensor for name, tensor in norm.state_dict().items() if name in own})
    return net


def detectron2_detector(q, k):
    backbone = Nest(fpn_lateral2=nn.Conv2d(8, 8, 1), bottom_up=detectron2_resnet(q))
    model = Nest(backbone=backbone, proposal_generator=mlp("CR"))
    return {"model": model.state_dict(), "optimizer": optimizer(), "iteration": 99}


def detectron2_encoder(q, k):
    encoder = build_encoder("resnet18")
    encoder.load_state_dict(with_fc(q).state_dict())
    bottom_up = EncoderBackbone(encoder, ["res5"])
    return {"model": Nest(backbone=Nest(bottom_up=bottom_up), roi_heads=mlp("L")).state_dict(), "iteration": 99}


def solo_learn(name):
    def build(q, k):
        networks = {name: with_fc(q), f"momentum_{name}": with_fc(k)}
        heads = {"classifier": mlp("L")[0], "momentum_classifier": mlp("L")[0], "momentum_projector": mlp("LBRL")}
        return lightning(Nest(**networks, **heads, projector=mlp("LBRL"), predictor=mlp("LBRL")))

    return build


def solo_learn_barlow(q, k):
    return lightning(Nest(backbone=with_fc(q), classifier=mlp("L")[0], projector=mlp("LBRLBRL")))


def vissl(q, k):
    trunk = Nest(_feature_blocks=with_fc(q)).state_dict()
    model = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.zeros(8, 8), "0.clf.0.bias": torch.zeros(8)}}
    state = {"base_model": {"model": model, "meta": {"input_shape": [3, 224, 224]}}, "optim": optimizer()}
    return {"phase_idx": 3, "iteration": 9, "loss": {"queue": torch.zeros(2)}, "classy_state_dict": state}


def ema_hook(q, k):
    """mmengine's EMAHook exchanges the two: the state dict is the average's."""
    online = Nest(steps=torch.tensor(9), module=Nest(backbone=with_fc(q), head=Nest(fc=mlp("L"))))
    content = training(Nest(backbone=with_fc(k), head=Nest(fc=mlp("L"))), meta=META)
    return {**content, "ema_state_dict": online.state_dict()}


def mmselfsup(average, **more):
    def build(q, k):
        copied = Nest(steps=torch.tensor(9), module=nn.Sequential(with_fc(k), Nest(mlp=mlp("LRL"))))
        parts = {"backbone": with_fc(q), "neck": Nest(mlp=mlp("LRL")), average: copied}
        return {"meta": META, **training(Nest(**{name: make() for name, make in more.items()}, **parts))}

    return build


def lightly_train_simclr(q, k):
    embedding = Nest(wrapped_model=Nest(_features=with_fc(q)))
    card = {"version": "0.18.0", "normalize_args": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
    return lightning(Nest(embedding_model=embedding, projection_head=Nest(layers=mlp("LBRL"))), lightly_train=card)


def lightly_train_dino(q, k):
    def side(net):
        return Nest(wrapped_model=Nest(_model=net))

    heads = {f"{who}_projection_head": Nest(layers=mlp("LRL")) for who in ("student", "teacher")}
    criterion = Nest(center=torch.zeros(1, 8))
    return lightning(
        Nest(student_embedding_model=side(q), teacher_embedding_model=side(k), **heads, criterion=criterion)
    )


def lightly(form, momentum=True):
    def build(q, k):
        parts = {"backbone": form(q), "projection_head": Nest(layers=mlp("lBRL"))}
        if momentum:
            parts |= {"prediction_head": Nest(layers=mlp("lBRL")), "backbone_momentum": form(k)}
            parts |= {"projection_head_momentum": Nest(layers=mlp("lBRL"))}
        return lightning(Nest(**parts))

    return build


def lightly_dino(q, k):
    heads = {f"{who}_head": Nest(layers=mlp("LRL")) for who in ("student", "teacher")}
    return lightning(Nest(student_backbone=children(q), teacher_backbone=children(k), **heads))


def transformers_resnet(q):
    """The module tree of transformers' ResNetModel, with a torchvision network's weights."""

    def layer(conv, norm):
        return Nest(convolution=conv, normalization=norm)

    def block(b):
        convs = [i for i in (1, 2, 3) if hasattr(b, f"conv{i}")]
        layers = nn.Sequential(*(layer(getattr(b, f"conv{i}"), getattr(b, f"bn{i}")) for i in convs))
        return Nest(layer=layers, **({"shortcut": layer(*b.downsample)} if b.downsample else {}))

    stages = (Nest(layers=nn.Sequential(*map(block, stage))) for stage in (q.layer1, q.layer2, q.layer3, q.layer4))
    return Nest(embedder=Nest(embedder=layer(q.conv1, q.bn1)), encoder=Nest(stages=nn.ModuleList(stages)))


def transformers_classifier(q, k):
    return Nest(resnet=transformers_resnet(q), classifier=nn.Sequential(nn.Flatten(), mlp("L")[0])).state_dict()


def timm_script(q, k):
    content = training(q, arch="resnet18", version=2, metric=71.5, args=argparse.Namespace(model="resnet18"))
    return {**content, "state_dict_ema": k.state_dict()}


def pytorch_examples(q, k):
    return training(ddp(q), arch="resnet18", best_acc1=torch.tensor(71.5), scheduler={"last_epoch": 3})


def torchvision_ema(q, k):
    content = training(q, "model", lr_scheduler={"last_epoch": 3}, args=argparse.Namespace(model="resnet18"))
    return {**content, "model_ema": AveragedModel(k).state_dict()}


def bare(q, k):
    return q.state_dict()


FRAMEWORKS = {
    "loco-det": loco_det,
    "loco-det-encoder": bare,
    "detectron2": detectron2_detector,
    "detectron2-backbone": lambda q, k: detectron2_resnet(q).state_dict(),
    "detectron2-encoder": detectron2_encoder,
    "solo-learn": solo_learn("backbone"),
    "solo-learn-older": solo_learn("encoder"),
    "solo-learn-barlow": solo_learn_barlow,
    "huggingface": transformers_classifier,
    "huggingface-model": lambda q, k: transformers_resnet(q).state_dict(),
    "vissl": vissl,
    "openmmlab-ema-hook": ema_hook,
    "openmmlab": mmselfsup("encoder_k", queue=lambda: torch.zeros(8, 16)),
    "openmmlab-byol": mmselfsup("target_net"),
    "openmmlab-mocov3": mmselfsup("momentum_encoder"),
    "lightly-train": lightly_train_simclr,
    "lightly-train-dino": lightly_train_dino,
    "lightly": lightly(children),
    "lightly-named": lightly(with_fc, momentum=False),
    "lightly-dino": lightly_dino,
    "lightly-state-dict": state_dict_of(lightly(children), "state_dict"),
    "lightly-backbone": lambda q, k: children(q).state_dict(),
    "timm": timm_script,
    "pytorch-examples": pytorch_examples,
    "torchvision-ema": torchvision_ema,
    "torchvision-model": lambda q, k: training(q, "model", args=argparse.Namespace(model="resnet18")),
    "torchvision": bare,
}

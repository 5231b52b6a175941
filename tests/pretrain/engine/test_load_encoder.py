"""The encoder in a checkpoint of pretraining, in Python."""

import pytest
import timm
import torch

from pretrain import build_encoder, load_encoder
from pretrain.files.checkpoints import FORMAT


def checkpoint(path, **changes):
    model = {f"encoder.{name}": value for name, value in build_encoder("resnet18x0.25").state_dict().items()}
    content = {
        "format": FORMAT,
        "encoder": "resnet18x0.25",
        "model": {**model, "decoders.res3.0.weight": torch.ones(2)},
    }
    torch.save({**content, **changes}, path)
    return path


def test_it_has_the_weights_of_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    path = checkpoint(tmp_path / "model.pth")
    encoder, saved = load_encoder(path), torch.load(path, weights_only=True)["model"]
    assert not encoder.training
    assert all(torch.equal(value, saved[f"encoder.{name}"]) for name, value in encoder.state_dict().items())
    own = build_encoder("resnet18x0.25")
    assert load_encoder(checkpoint(path, encoder="my.own"), own) is own


def test_a_network_of_timm_has_timms_names(tmp_path):
    torch.manual_seed(0)
    saved = build_encoder("timm:test_vit")
    model = {f"encoder.{name}": value for name, value in saved.state_dict().items()}
    encoder = load_encoder(checkpoint(tmp_path / "model.pth", encoder="timm:test_vit", model=model))
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 96)
        assert all(torch.equal(h, saved.eval()(images)[name]) for name, h in encoder(images).items())
    own = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
    named = {name.removeprefix("encoder.network."): value for name, value in model.items()}
    missing, unexpected = own.load_state_dict(named, strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} <= {"norm", "fc_norm"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "my.own"}, "my.own, code of your own: build it and hand it in"),
        ({"encoder": ["x"]}, "is damaged: it has no encoder"),
        ({"model": [1]}, "is damaged: it has no encoder, or no weights"),
        ({"encoder": "resnet18"}, "its weights do not fit resnet18"),
        ({"format": "another"}, "is no checkpoint of pretraining"),
    ],
)
def test_what_is_none_is_refused_in_a_line(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        load_encoder(checkpoint(tmp_path / "model.pth", **changes))
    assert "model.pth" in str(caught.value) and "\n" not in str(caught.value)

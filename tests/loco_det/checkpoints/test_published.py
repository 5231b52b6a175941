"""The list of published checkpoints: complete, known to the converter, and of what the libraries at hand say too."""

import re
from urllib.parse import urlsplit

import pytest

from loco_det.checkpoints import published_checkpoints
from loco_det.checkpoints.published import LIST
from loco_det.convert import LAYOUTS, TIMM_LAYOUTS
from pretrain.encoders import parse_encoder
from pretrain.files.yaml_files import parse_yaml

ENTRIES = published_checkpoints()
LICENCES = {"Apache-2.0", "BSD-3-Clause", "CC-BY-NC-4.0", "GPL-3.0", "MIT"}


def test_the_list_has_what_everybody_asks_for():
    asked = ("moco_v2_800ep", "simsiam_100ep", "barlowtwins", "swav_800ep", "dino_resnet50", "densecl_coco")
    assert {*asked, "torchvision_v1"} <= ENTRIES.keys() and len(ENTRIES) >= 20
    assert len({entry.url for entry in ENTRIES.values()}) == len(ENTRIES)
    names = [name for group in parse_yaml(LIST.read_text(), LIST) for name in group["checkpoints"]]
    assert names == list(ENTRIES), "a name in two groups"


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
def test_an_entry_is_well_formed(entry):
    assert re.fullmatch(r"[a-z0-9_]+", entry.name)
    for address in (entry.url, entry.page):
        parts = urlsplit(address)
        assert parts.scheme == "https" and "." in parts.netloc and "@" not in parts.netloc and not parts.query
    assert entry.licence in LICENCES and entry.project and entry.pretraining
    assert parse_encoder(entry.arch).name == entry.arch
    assert entry.layout in {layout.name for layout in (*LAYOUTS, *TIMM_LAYOUTS)}
    assert entry.top1 is None or 50 < entry.top1 < 85
    for digits in entry.expected.values():
        assert re.fullmatch("[0-9a-f]{8,64}", digits)
    in_name = re.search(r"-([0-9a-f]{8})\.pth$", entry.url)  # torch hub's and OpenMMLab's convention
    assert entry.sha256 == (in_name[1] if in_name else "")


def test_torchvisions_are_its_own():
    from torchvision import models

    weights = {w.url: w for name in models.list_models(models) for w in models.get_model_weights(name)}
    found = [entry for entry in ENTRIES.values() if entry.project == "torchvision"]
    assert len(found) >= 5
    for entry in found:
        meta = weights[entry.url].meta
        assert weights[entry.url].name in entry.pretraining and entry.arch in entry.url
        assert entry.top1 == meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert entry.megabytes == pytest.approx(meta["_file_size"] * 2**20 / 1e6, abs=0.06)


TIMMS = [entry for entry in ENTRIES.values() if re.search("_patch|convnext", entry.arch)]


@pytest.mark.parametrize("entry", TIMMS, ids=lambda entry: entry.name)
def test_networks_of_timm_are_where_timm_has_them(entry):
    import timm

    cfgs = {cfg.url: cfg for name in timm.list_pretrained(f"{entry.arch}.*") for cfg in [timm.get_pretrained_cfg(name)]}
    assert timm.is_model(entry.arch) and entry.url in cfgs


def test_timms_are_its_own():
    from timm.models.resnet import default_cfgs

    known = {cfg.url: cfg for variants in default_cfgs.values() for cfg in variants.cfgs.values()}
    projects = ("timm", "Semi-weakly supervised ImageNet", "torchvision")
    for entry in (entry for entry in ENTRIES.values() if entry.project in projects and entry.url in known):
        assert known[entry.url].license == entry.licence.lower()
        assert (known[entry.url].mean, known[entry.url].std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert all(entry.url in known for entry in ENTRIES.values() if entry.project in projects[:2])

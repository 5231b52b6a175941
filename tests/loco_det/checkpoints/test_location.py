"""From what a user names to a local file: through convert, load_encoder and a detector's weights, on 127.0.0.1."""

import hashlib
import json

import pytest
import torch
from file_server import FileServer

from loco_det.checkpoints import check_named, local_checkpoint, location
from loco_det.checkpoints.published import Published
from loco_det.cli.common.errors import one_line_errors
from loco_det.cli.convert_from_d2 import parser as back_parser
from loco_det.cli.convert_from_d2 import run as convert_back
from loco_det.cli.convert_to_d2 import parse, run
from loco_det.convert import load_encoder, load_encoder_of
from loco_det.engine.checkpoint import check_file, local_weights
from pretrain.encoders import build_encoder
from pretrain.files.remote import download
from pretrain.readout.config import get_cfg

THIN = "resnet50x0.125"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "WAITS", (0, 0, 0))
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def content(tmp_path):
    torch.manual_seed(0)
    torch.save(build_encoder(THIN).state_dict(), tmp_path / "thin.pth")
    return (tmp_path / "thin.pth").read_bytes()


@pytest.fixture
def published(server, content, monkeypatch):
    """A list of one checkpoint, ``thin_100ep``."""
    url, sha = server.serve("/files/thin.pth", content), hashlib.sha256(content).hexdigest()
    facts = {"project": "p", "arch": THIN, "layout": "torchvision", "licence": "MIT", "page": "", "pretraining": ""}
    entries = {"thin_100ep": Published("thin_100ep", url=url, sha256=sha[:8], **facts)}
    monkeypatch.setattr(location, "published_checkpoints", lambda: entries)
    return entries["thin_100ep"]


def call(*arguments):
    return run(parse([str(argument) for argument in arguments]))


def test_convert_takes_an_address(server, content, tmp_path, capsys):
    url = server.serve("/thin.pth", content, cuts=[len(content) // 2])
    assert call(url, tmp_path / "out.pkl", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["sha256"] == hashlib.sha256(content).hexdigest() and said.err.count("downloaded") == 1
    assert call(url, "--check-only") == 0 and len(server.asked) == 2
    assert call((tmp_path / "thin.pth").as_uri(), "--check-only") == 0 and (tmp_path / "out.pkl").exists()


def test_convert_takes_a_name(published, server, tmp_path, capsys):
    assert call("thin_100ep", tmp_path / "out.pkl") == 0 and "resnet50x0.125" in capsys.readouterr().out
    assert load_encoder("thin_100ep").source.path.name == "thin.pth" and len(server.asked) == 1
    cfg = get_cfg()
    from loco_det.convert import add_encoder_config

    add_encoder_config(cfg)
    cfg.MODEL.WEIGHTS = "thin_100ep"
    assert load_encoder_of(cfg).source.arch == THIN


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("thin_10ep", 2, "thin_10ep: no such file, and no published checkpoint: did you mean thin_100ep?"),
        ("thin.pth", 2, "thin.pth: no such file"),
        ("s3://bucket/x.pth", 2, "no such file: addresses that can be opened begin with https://, http://, file://"),
        ("URL/none.pth", 2, "URL/none.pth: no such file on the server (404 Not Found)"),
        ("URL/page", 1, "URL/page: a web page (HTML), not a checkpoint"),
        ("URL/x-01234abc.pth", 1, "URL/x-01234abc.pth: not the file that was published: its sha256 begins with"),
        ("URL/text.pth", 1, "text.pth: "),
    ],
)
def test_one_line_about_a_name_that_is_none(published, server, tmp_path, capsys, name, code, said):
    server.serve("/page", b"<!doctype html><p>moved")
    server.serve("/x-01234abc.pth", b"PK")
    server.serve("/text.pth", b"some text")
    assert call(name.replace("URL", server.url), tmp_path / "out.pkl") == code
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ") and said.replace("URL", server.url) in err[-1]
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("thin.pth", "cache")] == []


def test_the_lists_hash_holds_for_its_address_too(published, server, content):
    server.files["/files/thin.pth"].content = content + b"."
    for name in ("thin_100ep", published.url):
        with pytest.raises(ValueError, match="not the file that was published"):
            local_checkpoint(name)


def test_a_file_comes_before_a_name(published, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thin_100ep").write_bytes(b"")
    assert local_checkpoint("thin_100ep") == "thin_100ep" and check_named("thin_100ep") is None and not server.asked


def test_convert_back_takes_addresses_and_no_names(published, server, tmp_path, capsys):
    for name, said in [
        ("thin_100ep", "thin_100ep: no such file"),
        (server.url + "/x.pth", "no such file on the server"),
    ]:
        assert convert_back(back_parser().parse_args([name, str(tmp_path / "out.pth")])) == 2
        assert said in capsys.readouterr().err
    assert [name for name, _ in server.asked] == ["/x.pth"]


def test_a_detectors_weights(server, content, tmp_path, capsys):
    url = server.serve("/w.pkl", content)
    local = local_weights(url + "?matching_heuristics=True")
    assert local.endswith("/w.pkl?matching_heuristics=True") and local_weights(url) == local.partition("?")[0]
    check_file(url)
    check_file("")
    check_file("catalog://that only Detectron2 knows")
    assert local_weights(str(tmp_path)) == str(tmp_path) and len(server.asked) == 1
    with pytest.raises(FileNotFoundError, match=r"/none.pkl: no such file on the server"):
        check_file(server.url + "/none.pkl?matching_heuristics=True")
    with pytest.raises(SystemExit) as caught, one_line_errors():
        check_file(server.url + "/none.pkl")
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 2  # with the line of the download


def test_a_detector_loads_them(server, tmp_path):
    from torch import nn

    from loco_det.engine.checkpoint import GuardedCheckpointer

    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    torch.save({"model": {"backbone.weight": torch.ones(2, 2), "backbone.bias": torch.ones(2)}}, tmp_path / "d.pth")
    url = server.serve("/d.pth", (tmp_path / "d.pth").read_bytes())
    GuardedCheckpointer(model, str(tmp_path)).load(url + "?matching_heuristics=True")
    assert model.backbone.weight.eq(1).all()
    secret = url.replace("://", "://me:s3cret@").replace("d.pth", "e.pth")
    server.serve("/e.pth", b"PK\x03\x04")
    with pytest.raises(ValueError, match="not a checkpoint that Detectron2 can load") as caught:
        GuardedCheckpointer(model, str(tmp_path)).load(secret)
    assert "s3cret" not in str(caught.value)

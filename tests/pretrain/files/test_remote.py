"""Files by their address: whole or not at all, once, and one line about what goes wrong. All on 127.0.0.1."""

import errno
import hashlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from checkout import ROOT
from child_processes import child_environment
from file_server import FileServer

from pretrain.files.remote import address, connection, download, is_remote, local_copy, shown

CONTENT = random.Random(0).randbytes(102_400)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = FileServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache, in a folder of its own; no waiting between tries."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "WAITS", (0, 0, 0))
    return tmp_path / "cache"


def left(cache):
    """Names of the files in the cache."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def refused(url, kind=OSError, **options):
    """The line of the error that an address raises."""
    with pytest.raises(kind) as caught:
        local_copy(url, **options)
    text = str(caught.value)
    assert "\n" not in text and url.partition("?")[0].rpartition("@")[2].removeprefix("http://") in text, text
    return text


def test_downloaded_once(server, cache, capsys):
    url = server.serve("/a/model.pth", CONTENT)
    path = Path(local_copy(url))
    assert path.read_bytes() == CONTENT and path.name == "model.pth" and cache in path.parents
    said = capsys.readouterr()
    assert said.out == "" and said.err.count(SHA) == 1 and url in said.err and str(path) in said.err
    beside = json.loads(path.with_name("model.pth.json").read_text())
    assert beside.pop("date")[:2] == "20" and beside == {"url": url, "sha256": SHA, "bytes": len(CONTENT)}
    assert left(cache) == ["model.pth", "model.pth.json"]
    assert local_copy(url) == str(path) and len(server.asked) == 1 and capsys.readouterr().err == ""
    path.write_bytes(b"cut")  # by somebody
    assert Path(local_copy(url)).read_bytes() == CONTENT and len(server.asked) == 2


def test_the_same_name_elsewhere_is_another_file(server):
    one, two = server.serve("/one/m.pth", b"1" * 9), server.serve("/two/m.pth", b"2" * 9)
    assert Path(local_copy(one)).read_bytes() != Path(local_copy(two)).read_bytes()
    assert Path(local_copy(one + "?v=2")) != Path(local_copy(one)), "a query may name another file"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("validator", [{"ETag": '"x"'}, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}])
def test_a_cut_connection_goes_on_where_it_was(server, cache, validator, chunked):
    url = server.serve("/m.pth", CONTENT, cuts=[30_000, 50_000], headers=validator, chunked=chunked)
    assert Path(local_copy(url)).read_bytes() == CONTENT
    ranges = [(headers.get("Range"), headers.get("If-Range")) for _, headers in server.asked]
    [same] = validator.values()
    assert ranges == [(None, None), ("bytes=30000-", same), ("bytes=80000-", same)]
    assert left(cache) == ["m.pth", "m.pth.json"]


def test_the_next_command_goes_on_too(server, cache):
    url = server.serve("/m.pth", CONTENT, cuts=[10_000] * 4)
    text = refused(url, ConnectionError)
    assert "cut at 0.0 MB of 0.1 MB, and 3 more tries did not help" in text and "goes on from there" in text
    assert left(cache) == ["m.pth.part", "m.pth.part.json"] and len(server.asked) == 4
    assert Path(local_copy(url)).read_bytes() == CONTENT and server.asked[-1][1]["Range"] == "bytes=40000-"


@pytest.mark.parametrize("options", [{"ranges": False}, {"headers": {}}, {"headers": {"ETag": 'W/"1"'}}])
def test_a_server_of_whole_files_only_is_asked_for_the_whole_again(server, options):
    """It has no ranges, or does not say by what a changed file would be known."""
    url = server.serve("/m.pth", CONTENT, cuts=[30_000], **options)
    assert Path(local_copy(url)).read_bytes() == CONTENT and len(server.asked) == 2


@pytest.mark.parametrize("ranges", [True, "always"])
def test_a_file_that_has_changed_begins_anew(server, ranges):
    url = server.serve("/m.pth", CONTENT, cuts=[20_000] * 4, ranges=ranges)
    refused(url)
    changed = CONTENT[::-1]
    server.serve("/m.pth", changed, headers={"ETag": '"2"'}, ranges=ranges)
    assert Path(local_copy(url)).read_bytes() == changed


def test_a_part_that_was_whole_already(server, cache):
    url = server.serve("/m.pth", CONTENT, cuts=[20_000] * 4)
    refused(url)
    [part] = cache.rglob("*.part")
    part.write_bytes(CONTENT)  # killed before it got its name
    assert Path(local_copy(url)).read_bytes() == CONTENT and server.asked[-1][1]["Range"] == f"bytes={len(CONTENT)}-"
    server.serve("/n.pth", CONTENT, cuts=[20_000] * 4)
    refused(server.url + "/n.pth")
    [part] = cache.rglob("n.pth.part")
    part.write_bytes(CONTENT + b"more")
    assert Path(local_copy(server.url + "/n.pth")).read_bytes() == CONTENT


def test_redirects(server):
    server.serve("/real.pth", CONTENT, cuts=[20_000])
    server.serve("/two", redirect="/real.pth")
    path = Path(local_copy(server.serve("/one.pth", redirect=server.url + "/two")))
    assert path.read_bytes() == CONTENT and path.name == "one.pth"
    assert [name for name, _ in server.asked] == ["/one.pth", "/two", "/real.pth"] * 2
    assert server.asked[-1][1]["Range"] == "bytes=20000-"
    assert "redirects, or a circle" in refused(server.serve("/circle", redirect="/circle"))
    for i in range(12):
        server.serve(f"/{i}", redirect=f"/{i + 1}")
    assert "more than 10 redirects" in refused(server.url + "/0")
    for place in ("file:///etc/hostname", "ftp://127.0.0.1/x"):
        assert refused(server.serve("/away", redirect=place)).endswith(": refused")


def test_no_redirect_from_https_to_http():
    request = urllib.request.Request("https://a.example/x")
    with pytest.raises(OSError, match="to http://b.example/x: refused") as caught:
        connection._Redirects().redirect_request(request, None, 302, "", {}, "http://b.example/x")
    assert "to http://b.example/x: refused" in str(connection._refusal("https://a.example/x", caught.value))
    assert connection._Redirects().redirect_request(request, None, 302, "", {}, "https://b.example/x")


def test_answers_that_are_no_file(server, cache):
    assert "no such file on the server (404 Not Found)" in refused(server.url + "/none.pth", FileNotFoundError)
    assert "403" in refused(server.serve("/secret", statuses=[403]), PermissionError)
    assert "the server answers 418" in refused(server.serve("/pot", statuses=[418]))
    assert len(server.asked) == 3
    text = refused(server.serve("/ill", CONTENT, statuses=[500] * 4), ConnectionError)
    assert "the server answers 500" in text and "3 more tries did not help" in text and len(server.asked) == 7
    assert Path(local_copy(server.serve("/busy", CONTENT, statuses=[503, 429]))).read_bytes() == CONTENT
    assert "an empty file" in refused(server.serve("/empty.pth"), ValueError)
    assert "an empty file" in refused(server.serve("/empty2.pth", chunked=True), ValueError)
    assert left(cache) == ["busy", "busy.json"]


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"\x80\x02 not text", {"Content-Type": "text/html; charset=utf-8"}),
        (b"\n <!DOCTYPE html>\n<html>sign in</html>", {}),
        (b"<!-- page --><HTML lang='en'>", {"Content-Type": "application/octet-stream"}),
    ],
)
def test_a_web_page_is_no_checkpoint(server, cache, content, headers):
    text = refused(server.serve("/m.pth", content, headers=headers), ValueError)
    assert "a web page (HTML), not a checkpoint" in text and left(cache) == []


def test_hashes(server, cache):
    good = f"/m-{SHA[:8]}.pth"
    assert Path(local_copy(server.serve(good, CONTENT))).name == good[1:]
    text = refused(server.serve("/m-0a0b0c0d.pth", CONTENT), ValueError)
    assert f"its sha256 begins with {SHA[:8]}, expected 0a0b0c0d; it was removed" in text
    assert left(cache) == [good[1:], f"{good[1:]}.json"]
    md5 = hashlib.md5(CONTENT).hexdigest()
    url = server.serve("/n.pth", CONTENT)
    assert "its md5 begins with" in refused(url, ValueError, expected={"md5": "00000000"})
    assert local_copy(url, {"md5": md5[:8], "sha256": SHA.upper()})
    assert "its sha256 begins with" in refused(url, ValueError, expected={"sha256": "00" * 32})
    assert "n.pth" not in left(cache), "also when it comes out later that it is another file"
    assert local_copy(server.serve("/epoch-20240101.pth", CONTENT)), "a date, and no hash"


def test_a_disk_without_room(server, cache, monkeypatch):
    url = server.serve("/m.pth", CONTENT)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError) as caught:
        local_copy(url)
    assert caught.value.errno == errno.ENOSPC and f"{url} needs 0.1 MB, 0.0 MB are free" in caught.value.strerror
    assert left(cache) == []


def test_a_disk_that_gets_full(server, cache, monkeypatch):
    url = server.serve("/m.pth", CONTENT)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(download.os, "fsync", full)
        with pytest.raises(OSError) as caught:
            local_copy(url)
    assert caught.value.errno == errno.ENOSPC and url in caught.value.strerror and ".part" not in str(caught.value)
    assert left(cache) == []


def test_a_cache_that_cannot_be_written(server, cache, monkeypatch):
    cache.write_text("a file")
    assert "set FVCORE_CACHE to another folder" in refused(server.serve("/m.pth", CONTENT))


def test_no_network(server, cache, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/m.pth"
        assert "127.0.0.1 refuses the connection" in refused(url, ConnectionError)

    def nobody(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    assert "no network, or no host a.invalid" in refused("http://a.invalid/m.pth", ConnectionError)
    assert "no network" in refused("https://a.invalid/m.pth", ConnectionError) and left(cache) == []


def test_other_failures_of_a_connection(monkeypatch):
    for error, text in [
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "no safe connection to a.example: "),
        (TimeoutError("timed out"), "no answer within 30 s"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "no network (Network is unreachable)"),
    ]:
        assert text in str(connection._unreachable("https://a.example/x", error))


def test_https_to_a_server_without_it(server):
    url = server.serve("/m.pth", CONTENT).replace("http:", "https:")
    assert "no safe connection to 127.0.0.1" in refused(url, ConnectionError)


def test_a_server_that_falls_silent(server, monkeypatch):
    monkeypatch.setattr(connection, "TIMEOUT", 0.2)
    event = threading.Event()
    url = server.serve("/m.pth", CONTENT, wait=event)
    assert "the connection was cut (timed out)" in refused(url, ConnectionError)
    event.set()
    assert Path(local_copy(url)).read_bytes() == CONTENT


def test_a_connection_lost_between_two_tries(server, monkeypatch):
    url = server.serve("/m.pth", CONTENT, cuts=[30_000])
    monkeypatch.setattr(download, "WAITS", (0.01, 0, 0))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: server.close() if seconds else None)
    assert "refuses the connection: no server is there, or no network, and 3 more tries" in refused(
        url, ConnectionError
    )


def test_secrets_are_not_shown(server, cache, capsys):
    url = server.serve("/m.pth", CONTENT, headers={"ETag": '"1"'}).replace("://", "://me:s3cret@") + "?token=s3cret"
    path = Path(local_copy(url))
    assert server.asked[0][1]["Authorization"] == "Basic bWU6czNjcmV0" and server.asked[0][0] == "/m.pth?token=s3cret"
    assert "s3cret" not in capsys.readouterr().err + path.with_name("m.pth.json").read_text() + str(path)
    assert "s3cret" not in refused(url.replace("m.pth", "none.pth"), FileNotFoundError)
    server.serve("/away", redirect=server.url + "/m.pth")
    local_copy(url.replace("m.pth", "away"))
    assert "Authorization" in server.asked[-2][1] and "Authorization" not in server.asked[-1][1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("https://u:p@host/a/b.pth?x=1&y=2#z", "https://host/a/b.pth?..."),
        ("https:/u:p@host/a.pth", "https:/host/a.pth"),
        ("HF://owner/repo@main/x", "HF://owner/repo@main/x"),
        ("http://[::1/x?k=1", "http://[::1/x?..."),
        ("https://host?key=1", "https://host"),
        ("folder/me@home?.pth", "folder/me@home?.pth"),
    ],
)
def test_how_an_address_is_shown(name, text):
    assert shown(name) == text


def test_what_is_an_address():
    assert all(map(is_remote, ["https://a/b", "HTTP://a/b", "file:///a", "hf://o/r/f", "detectron2://x/y.pkl"]))
    assert not any(map(is_remote, ["a/b.pth", "https", "https:/a/b", "s3://a/b", "C://x", "", Path("a")]))


def test_addresses_that_cannot_be_read(cache):
    for url in ("http:///x", "http://[::1/x", "http://127.0.0.1:port/x", "http://a b/x", "https://"):
        with pytest.raises((ValueError, ConnectionError)) as caught:
            local_copy(url)
        assert str(caught.value).startswith(url) and "\n" not in str(caught.value)
    assert left(cache) == []


def test_strange_names_of_files(server):
    path = Path(local_copy(server.serve("/epoch%3D99-step%3D500400.ckpt", CONTENT)))
    assert path.name == "epoch=99-step=500400.ckpt"
    hidden = Path(local_copy(server.serve("/%2e%2e%2f.hidden", CONTENT)))
    assert hidden.name == "hidden" and hidden.parents[2].name == "loco_det"
    assert Path(local_copy(server.serve("/" + "x" * 400, CONTENT))).read_bytes() == CONTENT
    server.serve("/a%20b%C3%A9.pth", CONTENT)
    assert Path(local_copy(server.url + "/a bé.pth")).read_bytes() == CONTENT


def test_files_of_this_machine(tmp_path, cache):
    path = tmp_path / "a b.pth"
    path.write_bytes(CONTENT)
    for url in (path.as_uri(), f"file://localhost{path}", f"FILE://{path}"):
        assert local_copy(url) == str(path)
    assert "no such file" in refused("file:///no/such.pth", FileNotFoundError)
    assert "another machine" in refused("file://server/x.pth", ValueError)
    assert not cache.exists()


def test_detectron2s_own_addresses(monkeypatch):
    from pretrain.files.remote import handler

    monkeypatch.setattr(handler, "cached", lambda url, expected, force: Path("got") / url)
    assert local_copy("detectron2://ImageNetPretrained/MSRA/R-50.pkl").endswith(
        "https:/dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    )
    assert "api.onedrive.com" in local_copy("https://1drv.ms/u/s!abc")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The library's functions, without a hub: a repository with one file."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    there = {}

    def download(repo, name, revision=None):
        if (repo, name, revision) != ("owner/repo", "model.safetensors", None):
            raise there.get("error", huggingface_hub.errors.EntryNotFoundError("404 Client Error.\n\nno entry"))
        there["path"] = tmp_path / name
        there["path"].write_bytes(CONTENT)
        return str(there["path"])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *args, **options: str(there["path"]) if there else None
    )
    return there, huggingface_hub.errors


def test_the_hub(hub, capsys):
    there, errors = hub
    assert Path(local_copy("hf://owner/repo/model.safetensors")).read_bytes() == CONTENT
    assert SHA in capsys.readouterr().err
    assert local_copy("hf://owner/repo/model.safetensors") and capsys.readouterr().err == ""
    assert "404 Client Error. no entry" in refused("hf://owner/repo@v1/x.bin", FileNotFoundError)
    there["error"] = errors.LocalEntryNotFoundError("cannot reach the hub")
    assert "no network" in refused("hf://owner/other/x.bin", ConnectionError)
    there["error"] = RuntimeError("of some HTTP library")
    assert "of some HTTP library" in refused("hf://owner/other/x.bin", OSError)
    assert "expected hf://OWNER/REPO/FILE" in refused("hf://owner/repo", ValueError)


def test_without_the_hubs_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refused("hf://owner/repo/x.bin", ValueError)


WAITING = "from pretrain.files.remote import local_copy; import sys; print(local_copy(sys.argv[1]))"


def started(url, cache):
    environment = child_environment(FVCORE_CACHE=str(cache), no_proxy="*", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", WAITING, url]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_processes_download_it_once(server, cache):
    event = threading.Event()
    url = server.serve("/m.pth", CONTENT, wait=event)
    first = started(url, cache)
    wait_for(lambda: server.asked)
    second = started(url, cache)
    line = second.stderr.readline()
    assert f"{url}: another process (process {first.pid} on " in line and "waiting" in line
    event.set()
    outputs = [process.communicate(timeout=30)[0] for process in (first, second)]
    assert first.returncode == second.returncode == 0 and len(set(outputs)) == 1 and len(server.asked) == 1
    assert left(cache) == ["m.pth", "m.pth.json"]


def test_ctrl_c_leaves_the_part_only(server, cache):
    event = threading.Event()
    url = server.serve("/m.pth", CONTENT, wait=event)
    process = started(url, cache)
    wait_for(lambda: any(part.stat().st_size for part in cache.rglob("*.part")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    event.set()
    assert process.returncode and left(cache) == ["m.pth.part", "m.pth.part.json"]
    assert Path(local_copy(url)).read_bytes() == CONTENT and "Range" in server.asked[-1][1]


def test_progress_is_for_terminals(server, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    local_copy(server.serve("/m.pth", CONTENT))
    assert "m.pth" in capsys.readouterr().err.split("downloaded")[0]


def test_where_files_are_kept(monkeypatch):
    monkeypatch.delenv("FVCORE_CACHE")
    assert address.cache_folder() == Path("~/.torch/iopath_cache").expanduser()

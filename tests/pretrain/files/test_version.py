"""The version that results name."""

import re
import subprocess

from checkout import ROOT

from pretrain.files import version as module


def test_a_checkout_names_its_commit():
    module.version.cache_clear()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    expected = rf"0\.1\.0\+g{commit.stdout.strip()}(\.dirty)?" if commit.returncode == 0 else r"0\.1\.0"
    assert re.fullmatch(expected, module.version())


def test_an_installation_or_a_machine_without_git_has_the_number_alone(tmp_path, monkeypatch):
    for has_git in (False, True):
        monkeypatch.setattr(module, "ROOT", tmp_path / str(has_git))
        if has_git:
            (tmp_path / "True" / ".git").mkdir(parents=True)
            monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
        module.version.cache_clear()
        assert module.version() == "0.1.0"
    module.version.cache_clear()

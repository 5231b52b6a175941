"""Every command that README and docs show is one that its tool parses, and its config is there. README stays short."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import common
from loco_det.cli.common.commands import COMMANDS
from pretrain.files.shipped_configs import find_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
HEAD = re.compile(r"(?:torchrun [^ ]+ \S+ |DETECTRON2_DATASETS=\S+ )?(?:loco-det ([a-z0-9-]+)|python (tools/\w+)\.py)")
MODULES = {f"tools/{command.script}": command.module for command in COMMANDS.values()}


def commands():
    """(page, name of a command's module, its words) of all code blocks and code in sentences."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", (ROOT / page).read_text())
        lines = [line.strip() for line in text.splitlines() if line.startswith("    ") and "#!" not in line]
        lines += re.findall(r"`((?:loco-det|python tools/)[^`]+)`", text)
        for line in lines:
            if match := HEAD.match(line):
                name = COMMANDS[match[1]].module if match[1] in COMMANDS else MODULES.get(match[2])
                words = shlex.split(line[match.end() :].split("   #")[0], comments=True)
                found.append(pytest.param(page, name or match[1], words, id=f"{page}: {line[:60]}"))
    return found


class ParsedError(BaseException):  # which no command takes for a failure of its own
    """Stops a command when its options are parsed."""


@pytest.mark.parametrize(("page", "module", "words"), commands())
def test_a_command_is_parsed_by_its_tool(page, module, words, monkeypatch, capsys):
    words = [word for word in words if word != "..."]
    parsed = argparse.ArgumentParser.parse_known_args

    def parse(self, *arguments, **options):
        raise ParsedError(*parsed(self, *arguments, **options))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    main = importlib.import_module(f"loco_det.cli.{module}").main
    if module in ("pretrain", "train_net", "linear_probe", "knn", "evaluate", "light_head", "slurm") and not words:
        return  # named in a sentence
    with pytest.raises(ParsedError) as caught:
        main(words)
    options, unknown = caught.value.args
    assert not unknown
    config = getattr(options, "config_file", None)
    if config and not config.startswith(("output/", "my")) and module != "low_shot":
        assert Path(find_config(config)).is_file(), config
    for pairs in [getattr(options, "opts", None) or []]:
        assert len([word for word in pairs if word != "..."]) % 2 == 0, pairs


def benchmark_commands():
    """(page, name, words) of the benchmarks' commands in code blocks."""
    pages = {page: (ROOT / page).read_text() for page in PAGES}
    found = {
        page: re.findall(r"^ +python benchmarks/(\w+)\.py(.*)$", text, re.MULTILINE) for page, text in pages.items()
    }
    return [(page, name, shlex.split(rest, comments=True)) for page in PAGES for name, rest in found[page]]


@pytest.mark.parametrize(("page", "name", "words"), benchmark_commands())
def test_a_benchmark_parses_its_command(page, name, words):
    if name == "render":
        return
    benchmark = importlib.import_module(f"benchmarks.{name}")
    assert common.parser(benchmark).parse_args(words)


def test_there_are_commands():
    assert len(commands()) > 25


def test_readme_is_a_front_door():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1300
    first = next(line for line in text.splitlines() if line.startswith("    "))
    assert first.strip().startswith("git clone")

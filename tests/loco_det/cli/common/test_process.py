"""What a process does before torch is imported, and that ``--help`` does not import it."""

import importlib
import logging
import signal
import subprocess
import sys

import pytest
from checkout import ROOT
from child_processes import child_environment
from detectron2.engine import default_argument_parser

from loco_det.cli.common.arguments import argument_parser
from loco_det.cli.common.commands import COMMANDS as ALL
from loco_det.cli.common.errors import one_line_errors
from loco_det.cli.common.process import LAUNCHER

MODULES = {command.script: f"loco_det.cli.{command.module}" for command in ALL.values()}
COMMANDS = sorted({path.stem for path in (ROOT / "tools").glob("*.py")} - {"install_detectron2"})


def python(code, *arguments, **more):
    """Run code in a process in which torch cannot be imported."""
    code = f"import sys; sys.modules['torch'] = sys.modules['detectron2'] = None\n{code}"
    command, env = [sys.executable, "-c", code, *arguments], child_environment(**more)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_options_are_detectron2s():
    theirs, ours = default_argument_parser("the end"), argument_parser("the end")
    theirs.set_defaults(dist_url="auto")
    own = {"--overlay", "--local-rank", "--local_rank"}  # not in Detectron2
    reworded = ("--config-file", "--resume", "opts")
    options = {name: action for action in ours._actions for name in action.option_strings or [action.dest]}
    for action in theirs._actions:
        for name in action.option_strings or [action.dest]:
            same = options.pop(name)
            assert (type(same), same.default, same.type, same.nargs) == (
                type(action), action.default, action.type, action.nargs
            )  # fmt: skip
            assert same.help == action.help or name in reworded, name
    assert options.keys() == own
    assert vars(ours.parse_args([])) == vars(theirs.parse_args([])) | {"local_rank": None, "overlay": []}


HELP = """
import importlib
for name in sys.argv[1:]:
    try:
        importlib.import_module(name).main(["--help"])
    except SystemExit as exit:
        assert exit.code == 0
"""


def test_help_needs_nothing_that_takes_seconds_to_import():
    done = python(HELP, *(MODULES[name] for name in COMMANDS))
    assert done.returncode == 0 and done.stdout.count("usage: ") == len(COMMANDS), done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_tool_calls_its_command(name):
    """And tells the exit code."""
    text = (ROOT / "tools" / f"{name}.py").read_text()
    assert "from loco_det.cli.main import script\n" in text and text.endswith(f'    sys.exit(script("{name}"))\n')
    assert text.split('"""')[1] and callable(importlib.import_module(MODULES[name]).main)


def test_a_misspelt_config_is_said_before_anything_is_imported():
    done = python("from loco_det.cli.main import script; script('train_net', ['--config-file', 'coco_loco_forzen'])")
    assert done.stderr.startswith("error: coco_loco_forzen: no such file, and no shipped config: did you mean "), done


def test_a_spawned_process_without_its_launcher_ends_before_torch_is_imported():
    launcher = subprocess.Popen([sys.executable, "-c", ""])
    launcher.wait()
    done = python("import loco_det.cli.common.launch", **{LAUNCHER: str(launcher.pid)})
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")


def test_names_in_logs_and_errors_are_no_escape_sequences(capsys):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler)
    logger.warning("|%s|\n\x1b[36m|%s|\x1b[0m", "tram\x1b[2J", "\u202eox")
    assert records[0].getMessage() == "|tram\\x1b[2J|\n|\\u202eox|"
    with pytest.raises(SystemExit), one_line_errors():
        raise ValueError("class \x1b[2J\x9b")
    assert capsys.readouterr().err == "error: class \\x1b[2J\\x9b\n"

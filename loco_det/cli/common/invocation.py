"""How this command line was called: ``loco-det train`` or ``python tools/train_net.py``. Texts name it in that way."""

import os
import re
import shlex
import sys
from collections.abc import Sequence

from pretrain.processes.lifetime import module_tied_to_this_process, tied_to_this_process

from .commands import COMMANDS

TOOL = re.compile(r"(torchrun (?:--[\w-]+ \S+ )*)?(?:python )?\btools/(\w+)\.py")


def by_name() -> bool:
    """Whether it was called as ``loco-det COMMAND``, and not as a script of tools/."""
    return sys.argv[0].startswith("loco-det ")


def command_of(tool: str) -> str:
    """``train_net.py`` -> ``loco-det train``; empty if there is no such tool."""
    module = tool.removesuffix(".py")
    return next((f"loco-det {name}" for name, command in COMMANDS.items() if command.script == module), "")


def as_called(text: str) -> str:
    """A text that names scripts of tools/, in the words of the user's own command line."""
    if not by_name():
        return text

    def renamed(match: re.Match[str]) -> str:
        torchrun, name = match.groups()
        if not (command := command_of(name)):
            return match[0]
        return f"{torchrun}--no-python {command}" if torchrun else command

    return TOOL.sub(renamed, text)


def command_line(words: Sequence[str]) -> str:
    """A command line as a user would type it.

    Args:
        words: ``sys.argv``, or a tool such as "train_net.py" and its arguments.
    """
    if words[0].startswith("loco-det "):
        return f"{words[0]} {shlex.join(words[1:])}".rstrip()
    return shlex.join(["python", *words])


def command_for(tool: str, *arguments: str) -> str:
    """The line that a user would type for another tool than this, in the form that this one was called in.

    Args:
        tool: such as "train_net.py".
        arguments: of the tool.
    """
    if by_name():
        return command_line([command_of(tool), *arguments])
    folder = os.path.dirname(sys.argv[0])
    return command_line([os.path.join(folder if os.path.basename(folder) == "tools" else "tools", tool), *arguments])


def child_command(tool: str, *arguments: str, folder: str | os.PathLike[str] = "tools") -> tuple[list[str], str]:
    """A tool as a child of this process, which ends with it.

    Args:
        tool: such as "train_net.py".
        arguments: of the tool.
        folder: where its script is, if this command line is a script, too.

    Returns:
        The command for subprocess, and the line that a user would type for it.
    """
    if by_name():
        name = command_of(tool)
        return module_tied_to_this_process("loco_det", name.split()[1], *arguments), command_line([name, *arguments])
    script = os.path.join(folder, tool)
    return tied_to_this_process(script, *arguments), command_line([f"tools/{tool}", *arguments])

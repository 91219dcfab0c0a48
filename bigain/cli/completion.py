"""`bigain completion`: a script that completes commands, options and names in a shell."""

import re
from collections.abc import Sequence
from importlib.util import find_spec

from bigain import registry
from bigain.cli.classes import class_paths
from bigain.cli.commands import COMMANDS, load
from bigain.cli.list_ import LISTED, rows_of
from bigain.cli.parser import Parser
from bigain.cli.schema import RECIPE_COMMANDS
from bigain.errors import SettingError

__all__ = ["SHELLS", "completion_script", "make_parser", "run"]

SHELLS = ("bash", "zsh")


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain completion", description="Print a script that completes bigain's options in a shell.")
    parser.add_argument("shell", help="bash or zsh.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Print the script."""
    given = make_parser().parse_args([*arguments])
    print(completion_script(given.shell))


def completion_script(shell: str) -> str:
    """Make a script that completes commands, options, and the names of what is registered.

    It knows what is installed when it is made: after installing a plugin, make it anew.

    Args:
        shell: One of `SHELLS`.

    Raises:
        SettingError: Another shell, or the package shtab, which writes such scripts, is missing.
    """
    if shell not in SHELLS:
        raise SettingError(f"Completion is made for {' and '.join(SHELLS)}; got {shell!r}.")
    if find_spec("shtab") is None:
        raise SettingError("Completion scripts are written by the package shtab: pip install shtab.")
    script = _all_commands().get_completion_script(f"shtab-{shell}")
    # The command line takes the shorter names; only recipes need class paths. In one pass: the script is long.
    names = _names()
    return re.sub(r"[\w.]+", lambda found: names.get(found[0], found[0]), script)


def _all_commands() -> Parser:
    """Make one parser of all commands."""
    whole = Parser(prog="bigain", description="Token reduction for diffusion and vision transformers.")
    commands = whole.add_subcommands()
    for name, summary in COMMANDS.items():
        command = load(name).make_parser()
        for action, choices in _choices(name).items():
            # As choices of the parser itself, they would keep it from suggesting the nearest.
            next(one for one in command._actions if one.dest == action).choices = choices  # noqa: SLF001
        commands.add_subcommand(name, command, help=summary)
    return whole


def _choices(command: str) -> dict[str, list[str]]:
    """Say what the arguments of a command may be."""
    known = {
        "completion": {"shell": [*SHELLS]},
        "list": {"kinds": [*LISTED]},
        "schema": {"command": [*RECIPE_COMMANDS]},
        "describe": {"name": list(dict.fromkeys(row.name for row in rows_of()))} if command == "describe" else {},
    }
    return known.get(command, {})


def _names() -> dict[str, str]:
    """Map class paths to registered names."""
    return {
        path: entry.name
        for kind in registry.KINDS
        for entry in registry.entries(kind)
        if not entry.problem
        for path in class_paths(registry.get(kind, entry.name))
    }

"""Scripts that complete bigain's commands and options in a shell."""

import re
from importlib.util import find_spec

from jsonargparse import ArgumentParser

from bigain import registry
from bigain.cli.libraries import class_paths
from bigain.cli.listing import KINDS, rows_of
from bigain.cli.main import OWN_COMMANDS, VERBS
from bigain.cli.parsers import PARSERS
from bigain.cli.schema import COMMANDS
from bigain.cli.verbs import verb_parsers
from bigain.errors import SettingError

__all__ = ["SHELLS", "completion_script"]

SHELLS = ("bash", "zsh")


def completion_script(shell: str) -> str:
    """Make a script that completes commands, options, and the names of what is registered.

    It holds what is installed when it is made: after installing a plugin, make it anew.

    Args:
        shell: One of `SHELLS`.

    Raises:
        SettingError: Another shell, or the package shtab, which writes such scripts, is missing.
    """
    if shell not in SHELLS:
        raise SettingError(f"Completion is made for {' and '.join(SHELLS)}; got {shell!r}.")
    if find_spec("shtab") is None:
        raise SettingError("Completion scripts are written by the package shtab: pip install shtab.")
    script = _whole().get_completion_script(f"shtab-{shell}")
    for path, name in _names().items():
        # The command line takes names, and they are shorter; recipes take class paths.
        script = re.sub(rf"(?<![\w.]){re.escape(path)}(?![\w.])", name, script)
    return script


def _whole() -> ArgumentParser:
    """Make one parser of all commands."""
    whole = ArgumentParser(prog="bigain", description="Token reduction for diffusion and vision transformers.")
    commands = whole.add_subcommands()
    for verb, parser in verb_parsers().items():
        commands.add_subcommand(verb, parser, help=VERBS[verb])
    for name, make in PARSERS.items():
        command = make()
        for action, choices in _choices(name).items():
            # As choices of the parser itself, they would keep it from suggesting the nearest.
            next(one for one in command._actions if one.dest == action).choices = choices  # noqa: SLF001
        commands.add_subcommand(name, command, help=OWN_COMMANDS[name])
    return whole


def _choices(command: str) -> dict[str, list[str]]:
    """Say what the arguments of a command may be."""
    found = {
        "completion": {"shell": [*SHELLS]},
        "list": {"kinds": [*KINDS]},
        "schema": {"command": [*COMMANDS]},
        "describe": {"name": list(dict.fromkeys(row.name for row in rows_of()))} if command == "describe" else {},
    }
    return found.get(command, {})


def _names() -> dict[str, str]:
    """Map class paths to registered names."""
    return {
        path: entry.name
        for kind in registry.KINDS
        for entry in registry.entries(kind)
        if not entry.problem
        for path in class_paths(registry.get(kind, entry.name))
    }

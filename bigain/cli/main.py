"""The `bigain` command: Lightning's verbs, and a few of its own."""

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import get_args

from bigain.adapters.base import Part
from bigain.adapters.placement import PRESETS
from bigain.cli.shipped import with_shipped
from bigain.errors import SettingError
from bigain.registry import get, running_version

__all__ = ["main"]

OWN_COMMANDS = {
    "compare": "Run classification, generation and cost for several reducers and write one page.",
    "completion": "Print a script that completes options in bash or zsh.",
    "describe": "Show settings, source and use of a scorer, reducer, adapter, backbone or task.",
    "doctor": "Show versions, devices, and what works on this machine.",
    "export": "Turn a training checkpoint into the safetensors that ship.",
    "flops": "Count operations of any network under any reducers: no weights, no GPU, in seconds.",
    "latency": "Time any network under any reducers on this device: random weights, compiled to one graph.",
    "list": "List scorers, reducers, adapters, backbones and tasks, with the package each comes from.",
    "new-plugin": "Write a package with a scorer, a reducer and their tests to start from.",
    "recipes": "List the recipes that ship with bigain; --output FOLDER copies them, to be edited.",
    "schema": "Print a JSON schema of recipes, for editors.",
}
"""Commands that are not Lightning's verbs."""

VERBS = {
    "fit": "Train: --config RECIPE.",
    "test": "Classify or generate: --config RECIPE; --print_config shows every setting of one.",
}
"""Lightning's verbs that bigain's tasks have."""

_UNREAD = 141
"""Exit status where nobody reads on, as shells have it: 128 and the number of SIGPIPE."""

_RESUMING = ("compare", "test")
"""Commands with --resume."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's error is one sentence and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    _quieten()
    try:
        _run(given)
        sys.stdout.flush()
    except Exception as error:
        from bigain.cli.parsers import users_error

        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(_UNREAD)

        told = users_error(error)
        if told is None:
            raise
        print(f"bigain: error: {told}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        goes_on = "; the same command with --resume goes on" if given[0] in _RESUMING else ""
        print(f"bigain: interrupted{goes_on}.", file=sys.stderr)
        sys.exit(130)


def _nobody_reads() -> bool:
    """Tell whether whoever read the output, such as head, has closed it; what is left to write then goes nowhere."""
    import select

    try:
        file = sys.stdout.fileno()
        watch = select.poll()
    except (AttributeError, OSError):  # no file, or a system without poll
        return False
    watch.register(file, 0)
    if not any(happened & (select.POLLERR | select.POLLHUP) for _, happened in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), file)
    return True


def _run(given: Sequence[str]) -> None:
    """Run one command.

    Raises:
        SettingError: There is no such command.
    """
    name, *options = with_shipped(given)
    if name in ("--help", "-h"):
        print(_help())
        return
    if name in ("--version", "-V"):
        print(f"bigain {running_version()}")
        return
    if name in OWN_COMMANDS:
        from bigain.cli import commands

        getattr(commands, name.replace("-", "_"))(_with_class_paths(options))
        return
    if not name.startswith("-") and name not in VERBS:
        known = [*VERBS, *OWN_COMMANDS]
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise SettingError(f"There is no command {name!r}.{hint} There are {', '.join(known)}.")
    from bigain.cli.verbs import run_verb

    run_verb(_with_class_paths([name, *options]))


def _help() -> str:
    told = [f"  {name:<11} {does}" for name, does in {**VERBS, **OWN_COMMANDS}.items()]
    return "\n".join(["usage: bigain COMMAND [options]", "", *told, "", "What a command takes: bigain COMMAND --help"])


def _with_class_paths(arguments: Sequence[str]) -> list[str]:
    """Turn registered names into class paths; `--reducer lgtm` means `--reducer=lgtm`."""
    joined: list[str] = []
    for argument in arguments:
        option = joined[-1] if joined else ""
        if option.startswith("--") and "=" not in option and _kind_of(option) and not argument.startswith("-"):
            joined[-1] = f"{option}={argument}"
        else:
            joined.append(argument)
    return [_with_class_path(argument) for argument in joined]


def _kind_of(option: str) -> str | None:
    """Say what kind of class an option takes: `--model.reducer` takes reducers, and so does its `.help`."""
    names = {"reducer": "reducers", "otherwise": "reducers", "backbone": "backbones", "scorer": "scorers"}
    return names.get(option.removeprefix("--").removesuffix(".help").rpartition(".")[2])


def _with_class_path(argument: str) -> str:
    """Turn `--model.reducer=lgtm` into the class path that jsonargparse wants."""
    option, equals, value = argument.partition("=")
    if option.endswith("placement") and value in PRESETS:
        return f"{option}.preset={value}"
    if option.endswith("placement.parts") and value in get_args(Part):
        return f"{option}=[{value}]"
    kind = _kind_of(option)
    if kind is None or not equals or "." in value or value.startswith(("{", "null")):
        return argument
    found = get(kind, value)
    return f"{option}={found.__module__}.{found.__qualname__}"


def _quieten() -> None:
    """Drop what is neither about this run nor in the user's hands."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own calls
    advertisement = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    advertisement.addFilter(lambda record: not record.getMessage().startswith("💡"))
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")
    # Images lie decoded in memory: worker processes would slow their loading down.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


if __name__ == "__main__":
    main()

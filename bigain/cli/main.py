"""The `bigain` command: finds the command asked for, runs it, and turns a user's error into one sentence."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

from bigain.cli.arguments import with_class_paths
from bigain.cli.commands import COMMANDS, load
from bigain.cli.messages import sentence_of
from bigain.cli.recipes import with_shipped
from bigain.cli.signals import ended_by_signals
from bigain.cli.terminal import did_you_mean
from bigain.errors import SettingError
from bigain.registry import running_version

__all__ = ["main"]

_CLOSED_PIPE = 141
"""Exit status if the reader of the output is gone, as in shells: 128 and the number of SIGPIPE."""

_RESUMABLE = ("compare", "test")
"""Commands with --resume."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's error is one sentence and exit status 2.

    Args:
        arguments: What follows `bigain`. Default: the program's own; signals then end the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    hint = "; the same command with --resume goes on" if given[0] in _RESUMABLE else ""
    _silence_libraries()
    try:
        with ended_by_signals(f"bigain: interrupted{hint}.") if arguments is None else nullcontext():
            _run(given)
            sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            sys.exit(_CLOSED_PIPE)
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(f"bigain: error: {sentence}", file=sys.stderr)
        sys.exit(2)


def _run(given: Sequence[str]) -> None:
    """Run one command.

    Raises:
        SettingError: There is no such command.
    """
    name, *options = with_shipped(given)
    if name in ("--help", "-h"):
        print(_help())
    elif name in ("--version", "-V"):
        print(f"bigain {running_version()}")
    elif name in COMMANDS:
        load(name).run(with_class_paths(options))
    else:
        kind = "option" if name.startswith("-") else "command"
        known = ["--help", "--version"] if kind == "option" else [*COMMANDS]
        hint = " ".join(filter(None, [did_you_mean(name, known), f"There are {', '.join(known)}."]))
        raise SettingError(f"There is no {kind} {name!r}. {hint}")


def _help() -> str:
    lines = [f"  {name:<11} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(["usage: bigain COMMAND [options]", "", *lines, "", "What a command takes: bigain COMMAND --help"])


def _output_is_closed() -> bool:
    """Say whether the reader of the output, such as head, has closed it; further output is then discarded."""
    import select

    try:
        file = sys.stdout.fileno()
        watch = select.poll()
    except (AttributeError, OSError):  # no file, or a system without poll
        return False
    watch.register(file, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), file)
    return True


def _silence_libraries() -> None:
    """Silence messages of libraries that are not about this run, or that the user can do nothing about."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own calls
    for name in ("utilities.rank_zero", "trainer.connectors.signal_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_about_this_run)
    # diffusers warns of every cast, also where the list of modules that should stay in float32 is empty.
    logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda record: "[]" not in record.getMessage())
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")
    # Images are decoded in memory: worker processes would slow loading down.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def _is_about_this_run(record: logging.LogRecord) -> bool:
    """Say whether a line of Lightning's is neither an advertisement nor about a signal, which is reported already."""
    message = record.getMessage()
    return not any(
        words in message for words in ("💡", "TPU available", "Detected KeyboardInterrupt", "Received SIGTERM")
    )


if __name__ == "__main__":
    main()

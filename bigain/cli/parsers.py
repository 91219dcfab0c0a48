"""What each of bigain's own commands is given, and errors that say what is wrong in one line."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser

from bigain.errors import BigainError, SettingError

__all__ = ["PARSERS", "OneLineErrors", "shortened", "users_error"]

_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")


class OneLineErrors(ArgumentParser):
    """A parser whose errors are the user's, without a page of usage before them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong.

        Raises:
            BigainError: On the command line.
            ArgumentError: Where a caller asked for that.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        if users := users_error(ex):
            raise users
        told = shortened(message)
        parser = getattr(ex, "subcommand_parser", None) or self
        classes = re.findall(r"\b(?:\w+\.){2,}[A-Z]\w*(?=: )", told)
        help_of = f"bigain describe {classes[-1]}" if classes else f"{parser.prog.replace(' [options]', '')} --help"
        raise SettingError(f"{told} See {help_of}.") from ex


def users_error(error: BaseException | None) -> BigainError | None:
    """Find the user's error among the causes of one.

    jsonargparse takes what is raised while a recipe is built for a mismatch of types
    and raises an error of its own, with everything it tried.
    """
    while error is not None and not isinstance(error, BigainError):
        error = error.__cause__ or error.__context__
    return error


def shortened(message: str) -> str:
    """Bring what jsonargparse tells of a setting deep in a recipe into one line.

    It tells all that it tried at each level. Of these, what went deepest is what was meant.
    """
    lines = [line for line in message.splitlines() if line.strip() and not line.strip(" -").startswith(_NOISE)]
    if not lines:
        return message
    ends = [at for at, line in enumerate(lines) if at + 1 == len(lines) or _depth(lines[at + 1]) <= _depth(line)]
    least = max(_depth(lines[at]) for at in ends)
    deepest = [at for at in ends if _depth(lines[at]) == least]
    path: list[str] = []
    for line in reversed(lines[: deepest[0]]):
        if _depth(line) < least:
            path, least = [_plain(line), *path], _depth(line)
    told = ": ".join([*path, "; or ".join(dict.fromkeys(_plain(lines[at]) for at in deepest))])
    given = re.search(r"Given value: (.{1,40})$", message, re.MULTILINE)
    if given and "Got value" not in told:
        told += f"; got {given[1]}"
    return told + ("" if told.endswith((".", "?")) else ".")


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" -"))


def _plain(line: str) -> str:
    """Say where in words that a recipe has."""
    text = re.sub(r"Parser key \"([^\"]*)\":?", r"\1", line.strip(" -"))
    text = re.sub(r"Problem with given class_path '([^']*)':?", r"\1", text)
    return text.replace("<class '", "").replace("'>", "").replace("typing.", "").removesuffix(":")


def _recipe(name: str, told: str, example: str) -> OneLineErrors:
    parser = OneLineErrors(prog=f"bigain {name}", description=told)
    parser.add_argument("--config", action="config", help=f"A YAML recipe, such as {example}.")
    return parser


def _compare() -> OneLineErrors:
    from bigain.benchmark.comparison import Comparison

    parser = _recipe("compare", "Run several reducers, write one page.", "recipes/benchmark/cifar10_demo.yaml")
    parser.add_argument("--output", type=Path, default=Path("results/compare"), help="Folder of the result.")
    parser.add_argument("--resume", action="store_true", help="Finish an interrupted comparison.")
    parser.add_class_arguments(Comparison, "comparison", as_group=True)
    return parser


def _export() -> OneLineErrors:
    parser = OneLineErrors(
        prog="bigain export", description="Turn a training checkpoint into half-precision safetensors."
    )
    parser.add_argument("checkpoint", type=Path, help="A .ckpt file that `bigain fit` wrote.")
    parser.add_argument("output", type=Path, help="The .safetensors file to write.")
    parser.add_argument("--prefix", default="backbone.network.", help="Which part of the LightningModule to keep.")
    return parser


def _flops() -> OneLineErrors:
    from bigain.benchmark.flops_settings import FlopsSettings

    told = "Count the operations of one network evaluation under reducers: no weights, no GPU."
    parser = _recipe("flops", told, "recipes/flops/sd2_tables_11_18.yaml")
    parser.add_class_arguments(FlopsSettings)
    parser.add_argument("--csv", type=Path, default=None, help="File for the table, too.")
    return parser


def _latency() -> OneLineErrors:
    from bigain.benchmark.latency_settings import LatencySettings

    told = "Time a network under reducers on this device: random weights, compiled, beside no reduction."
    parser = _recipe("latency", told, "recipes/latency/sd2.yaml")
    parser.add_class_arguments(LatencySettings)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures, too.")
    return parser


def _list() -> OneLineErrors:
    from bigain.cli.listing import KINDS

    parser = OneLineErrors(
        prog="bigain list", description="List what recipes may name, and the package each comes from."
    )
    parser.add_argument("kinds", nargs="*", default=[], help=f"Any of {', '.join(KINDS)}; all by default.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    return parser


def _describe() -> OneLineErrors:
    parser = OneLineErrors(
        prog="bigain describe", description="Show settings, source and use of what `bigain list` lists."
    )
    parser.add_argument("name", help="As `bigain list` shows it, lgtm or reducers/lgtm, or a class path.")
    return parser


def _schema() -> OneLineErrors:
    from bigain.cli.schema import COMMANDS

    parser = OneLineErrors(prog="bigain schema", description="Print a JSON schema of a command's recipes, for editors.")
    parser.add_argument("command", nargs="?", default="test", help=f"One of {', '.join(COMMANDS)}; default: test.")
    return parser


def _completion() -> OneLineErrors:
    parser = OneLineErrors(
        prog="bigain completion", description="Print a script that completes bigain's options in a shell."
    )
    parser.add_argument("shell", help="bash or zsh.")
    return parser


def _doctor() -> OneLineErrors:
    told = "Show versions, devices, and what works on this machine; exit status 1 if something is broken."
    parser = OneLineErrors(prog="bigain doctor", description=told)
    parser.add_argument("--compile", type=bool, default=True, help="Compile something small; takes some seconds.")
    return parser


def _new_plugin() -> OneLineErrors:
    parser = OneLineErrors(
        prog="bigain new-plugin", description="Write a package with a scorer, a reducer and their tests."
    )
    parser.add_argument("name", help="Name of the package, such as bigain-texture.")
    parser.add_argument("--folder", type=Path, default=None, help="Folder to make. Default: one of that name, here.")
    return parser


def _recipes() -> OneLineErrors:
    parser = OneLineErrors(prog="bigain recipes", description="List the recipes that ship with bigain, or copy them.")
    parser.add_argument("--output", type=Path, default=None, help="Folder to make, with a copy of each.")
    return parser


PARSERS: Mapping[str, Callable[[], OneLineErrors]] = {
    "compare": _compare,
    "completion": _completion,
    "describe": _describe,
    "doctor": _doctor,
    "export": _export,
    "flops": _flops,
    "latency": _latency,
    "list": _list,
    "new-plugin": _new_plugin,
    "recipes": _recipes,
    "schema": _schema,
}
"""What makes each command's parser."""

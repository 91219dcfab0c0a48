"""The parser of every command: its errors are one line, and a mistyped option names the nearest."""

import re
from argparse import Action
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, NoReturn, TypeVar, cast, get_type_hints

from jsonargparse import ArgumentParser, set_loader
from yaml import YAMLError  # type: ignore[import-untyped] # comes with jsonargparse

from bigain.benchmark.strict_yaml import load_strictly
from bigain.cli.messages import shortened, users_error
from bigain.cli.terminal import did_you_mean
from bigain.errors import SettingError

__all__ = ["Parser", "recipe_parser", "settings_of"]

set_loader("yaml", load_strictly, exceptions=(YAMLError,))

Settings = TypeVar("Settings")

_CLASS = re.compile(r"\b(?:\w+\.){2,}[A-Z]\w*(?=: )")
_REFUSED = re.compile(r"(?:unrecognized arguments: --|[Oo]ption ')([\w.-]+)")


class Parser(ArgumentParser):
    """A parser that raises errors as one sentence, without a page of usage, and takes no abbreviated options."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        # With abbreviations, a mistyped option could match another, and a run would begin.
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an error.

        Raises:
            BigainError: On the command line.
            ArgumentError: If `exit_on_error` is off.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        if users := users_error(ex):
            raise users
        sentence = shortened(message)
        parser = getattr(ex, "subcommand_parser", None) or self
        classes = _CLASS.findall(sentence)
        page = f"bigain describe {classes[-1]}" if classes else f"{parser.prog.replace(' [options]', '')} --help"
        hint = self._nearest_option(sentence, classes[-1:])
        raise SettingError(f"{sentence} {hint}See {page}.") from ex

    def _nearest_option(self, sentence: str, classes: list[str]) -> str:
        refused = _REFUSED.search(sentence)
        if not refused:
            return ""
        name = refused[1]
        group = re.search(r"Group '([\w.]+)'", sentence)
        if classes:
            return _spaced(did_you_mean(name, _settings_of(classes[0], group[1] if group else "")))
        prefix = f"{group[1]}." if group else ""
        known = {option.removeprefix("--") for option in _options(self) if option.startswith("--")}
        hint = did_you_mean(prefix + name, known, cutoff=0.7)
        return _spaced(re.sub(r"(?<=mean |. or )(?=\w)", "--", hint) if "--" in sentence else hint.replace(prefix, ""))


def recipe_parser(name: str, description: str, example: str) -> Parser:
    """Make a parser of a command that takes recipes."""
    parser = Parser(prog=f"bigain {name}", description=description)
    parser.add_argument("--config", action="config", help=f"A YAML recipe, such as {example}.")
    return parser


def settings_of(kind: type[Settings], given: Any) -> Settings:
    """Make the settings class of a command from what was parsed."""
    return kind(**{item.name: getattr(given, item.name) for item in fields(cast("Any", kind))})


def _spaced(hint: str) -> str:
    return f"{hint} " if hint else ""


def _options(parser: Any) -> Iterator[str]:
    """List the options of a parser and of its subcommands."""
    actions: list[Action] = parser._actions  # noqa: SLF001 there is no public list
    for action in actions:
        yield from action.option_strings
        # The choices of a positional argument, or Lightning's verbs.
        for inner in action.choices.values() if isinstance(action.choices, dict) else ():
            yield from _options(inner)


def _settings_of(path: str, group: str) -> list[str]:
    """List the settings of a class, or those of its setting `group` if that is a dataclass."""
    module, _, name = path.rpartition(".")
    try:
        hints = get_type_hints(getattr(import_module(module), name).__init__)
    except Exception:  # whatever a plugin's annotations raise; the first error is reported anyway
        return []
    inner = hints.get(group)
    return (
        [item.name for item in fields(inner)] if is_dataclass(inner) else [name for name in hints if name != "return"]
    )

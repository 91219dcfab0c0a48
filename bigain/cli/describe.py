"""`bigain describe`: what a registered name is, its settings, its source, and where it works."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from bigain import registry
from bigain.adapters.base import Adapter, Part
from bigain.cli.classes import Parameter, Words, installed_version, parameters_of, type_text, words_of
from bigain.cli.list_ import KINDS, Row, rows_of
from bigain.cli.parser import Parser
from bigain.cli.terminal import did_you_mean, make_console
from bigain.errors import SettingError
from bigain.reducers.base import TokenReducer
from bigain.scorers.base import TokenScorer

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Description", "describe", "make_parser", "run"]


@dataclass(frozen=True)
class Description:
    """A class, described.

    Args:
        name: `reducers/lgtm`, or a class path.
        target: Its class path.
        package: Its distribution and version.
        words: Its docstring.
        parameters: Its settings.
        facts: Where it works, in words, each under a heading.
    """

    name: str
    target: str
    package: str
    words: Words
    parameters: tuple[Parameter, ...]
    facts: tuple[tuple[str, str], ...]


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain describe", description="Show settings, source and use of what `bigain list` lists.")
    parser.add_argument("name", help="As `bigain list` shows it, lgtm or reducers/lgtm, or a class path.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Print a description, or several where several kinds have the name."""
    given = make_parser().parse_args([*arguments])
    console = make_console()
    for number, description in enumerate(_all_of(given.name)):
        if number:
            console.rule()
        for part in _terminal_text(description):
            console.print(part, highlight=False)


def describe(name: str) -> Description:
    """Describe what `bigain list` lists, or any other class of these kinds.

    Args:
        name: `lgtm`, `reducers/lgtm` where several kinds have the name, or a class path.

    Raises:
        SettingError: There is no such name (the nearest are shown), several kinds have it, or
            its class is broken.
    """
    if "." in name:
        kind, found = _by_path(name)
        return _described(f"{found.__module__}.{found.__qualname__}", kind, found, "")
    rows = _rows_named(name)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    if len(kinds) > 1:
        several = " or ".join(f"{kind}/{rows[0].name}" for kind in kinds)
        raise SettingError(f"{name!r} is the name of several things; say {several}.")
    row = rows[0]
    if row.kind != "tasks":
        found = registry.get(row.kind, row.name)
    else:
        _, found = _by_path(row.target)
    return _described(f"{row.kind}/{row.name}", row.kind, found, row.package)


def _all_of(name: str) -> list[Description]:
    """Describe everything of a name: an adapter and a backbone of one family share it."""
    kinds = [] if "." in name else list(dict.fromkeys(row.kind for row in _rows_named(name)))
    return [describe(f"{kind}/{name}") for kind in kinds] if len(kinds) > 1 else [describe(name)]


def _terminal_text(description: Description) -> Iterator["RenderableType"]:
    """Lay a description out for a terminal; nothing is cut."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    yield Text.assemble((description.name, "bold"), f"  {description.package}" if description.package else "")
    yield Padding(Text(description.words.text or "(no docstring)"), (1, 0))
    if description.parameters:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("setting", "type", "default", "meaning"):
            table.add_column(column, overflow="fold")
        for item in description.parameters:
            cells = (item.name, type_text(item.annotation), item.default_text, item.meaning)
            table.add_row(*(Text(cell) for cell in cells))
        yield table
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    raises = [("raises", f"{kind}: {when}") for kind, when in description.words.raises]
    source = [("source", description.words.references)] if description.words.references else []
    for heading, text in (*description.facts, *raises, *source, ("class path", description.target)):
        grid.add_row(heading, Text(text))
    yield grid


def _rows_named(name: str) -> list[Row]:
    """Find the rows of a name; no registered class is imported."""
    kind, slash, bare = name.rpartition("/")
    if slash and kind not in KINDS:
        raise SettingError(f"{name!r}: before the slash stands one of {', '.join(KINDS)}; got {kind!r}.")
    rows = [row for one in ([kind] if slash else KINDS) for row in _rows(one)]
    found = [row for row in rows if row.name == bare]
    if not found:
        names = sorted({row.name for row in rows})
        hint = did_you_mean(bare, names, count=3) or f"There are {', '.join(names)}."
        raise SettingError(f"Nothing is named {name!r}{f' among {kind}' if slash else ''}. {hint}")
    return found


def _rows(kind: str) -> list[Row]:
    if kind == "tasks":
        return rows_of([kind])
    return [Row(kind, entry.name, entry.target, entry.package, "", "") for entry in registry.declared(kind)]


def _by_path(path: str) -> tuple[str, type[Any]]:
    """Import a class, and return it behind its kind, which its base decides."""
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever that module raises
        raise SettingError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise SettingError(f"{path} is no class.")
    for kind in registry.KINDS:
        if issubclass(found, registry.base_of(kind)):
            return kind, found
    return "tasks", found


def _described(name: str, kind: str, found: type[Any], package: str) -> Description:
    facts = {"scorers": _of_scorer, "reducers": _of_reducer, "adapters": _of_adapter}.get(kind)
    bare = name.rpartition("/")[2]
    return Description(
        name,
        f"{found.__module__}.{found.__qualname__}",
        package,
        words_of(found),
        tuple(parameters_of(found)),
        tuple(facts(bare, found)) if facts else (),
    )


def _of_scorer(name: str, scorer: type[TokenScorer]) -> Iterator[tuple[str, str]]:
    yield "detail is", f"where the formula is {scorer.detail_is}; calling the scorer gives large values for detail"
    taking = [
        entry.name
        for entry in registry.entries("reducers")
        if not entry.problem
        and any(_takes_scorer(item) for item in parameters_of(registry.get("reducers", entry.name)))
    ]
    yield "taken by", f"{', '.join(taking)}: scorer={name!r}, or --model.reducer.scorer {name}"


def _takes_scorer(item: Parameter) -> bool:
    return TokenScorer in (item.annotation, *get_args(item.annotation))


def _of_reducer(name: str, reducer: type[TokenReducer]) -> Iterator[tuple[str, str]]:
    composite = reducer.kinds is not TokenReducer.kinds
    if composite:
        yield "shrinks", "what the reducers it is made of shrink"
    elif reducer.kind == "kv":
        yield "shrinks", "keys and values (kv); queries and outputs stay whole"
    else:
        yield "shrinks", "queries, keys and values (merge); the output is restored"
    parts = ", ".join(get_args(Part))
    where = "self" if reducer.kind == "kv" and not composite else f"self by default; any of {parts}"
    yield "parts", where + (", as far as the reducers it is made of go" if composite else "")
    if reducer.kind == "merge" and not composite:
        yield "progressive", "in vision transformers (adapters timm_vit, transformers_vit), cell as one number"
    yield "models", f"all that have an adapter: {', '.join(registry.available('adapters'))}"
    needed = "".join(f", {item.name}=..." for item in parameters_of(reducer) if item.required)
    yield "use", f"bigain.attach(model, {name!r}{needed}), or --model.reducer {name}"


def _of_adapter(name: str, adapter: type[Adapter]) -> Iterator[tuple[str, str]]:
    yield "family", adapter.family
    yield "classes", ", ".join(adapter.classes) or "recognised otherwise"
    version = installed_version(adapter.library)
    here = f"{version} is installed" if version else "not installed"
    yield "library", f"{adapter.library}, tested with {adapter.tested or 'no version stated'}; {here}"
    planned = {
        "block": "the block's input, before the norm",
        "part": "the input of the first part that is reduced",
        "keys": "the mean of the heads' keys",
    }
    yield "plans from", f"{planned[adapter.plan_from]} (plan_from={adapter.plan_from!r})"
    yield "use", f"found by itself; or bigain.attach(model, ..., adapter={name!r})"

"""Say what something registered is, takes and comes from, and where it works."""

import difflib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from bigain import registry
from bigain.adapters.base import Adapter, Part
from bigain.cli.docstrings import Parameter, Words, parameters_of, type_text, words_of
from bigain.cli.libraries import installed_version
from bigain.cli.listing import KINDS, Row, rows_of, tasks
from bigain.errors import SettingError
from bigain.reducers.base import TokenReducer
from bigain.scorers.base import TokenScorer

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Description", "describe", "terminal_text"]


@dataclass(frozen=True)
class Description:
    """What there is to know of a class.

    Args:
        name: `reducers/lgtm`, or a class path.
        target: Its class path.
        package: Distribution that brings it, and its version.
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


def describe(name: str) -> Description:
    """Describe what `bigain list` lists, or any other class of these kinds.

    Args:
        name: `lgtm`, `reducers/lgtm` where several kinds have the name, or a class path.

    Raises:
        SettingError: There is no such name (the nearest are shown), several kinds have it, or
            what it stands for is broken.
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
    if row.problem:
        raise SettingError(row.problem)
    if row.kind == "tasks":
        found = next(task for task in tasks() if task.__name__ == row.name)
    else:
        found = registry.get(row.kind, row.name)
    return _described(f"{row.kind}/{row.name}", row.kind, found, row.package)


def terminal_text(told: Description) -> Iterator["RenderableType"]:
    """Lay a description out for a terminal; nothing is cut."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    yield Text.assemble((told.name, "bold"), f"  {told.package}" if told.package else "")
    yield Padding(Text(told.words.text or "(no docstring)"), (1, 0))
    if told.parameters:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("setting", "type", "default", "meaning"):
            table.add_column(column, overflow="fold")
        for item in told.parameters:
            cells = (item.name, type_text(item.annotation), item.default_text, item.meaning)
            table.add_row(*(Text(cell) for cell in cells))
        yield table
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    raises = [("raises", f"{kind}: {when}") for kind, when in told.words.raises]
    source = [("source", told.words.references)] if told.words.references else []
    for heading, text in (*told.facts, *raises, *source, ("class path", told.target)):
        grid.add_row(heading, Text(text))
    yield grid


def _rows_named(name: str) -> list[Row]:
    kind, slash, bare = name.rpartition("/")
    if slash and kind not in KINDS:
        raise SettingError(f"{name!r}: before the slash stands one of {', '.join(KINDS)}; got {kind!r}.")
    rows = rows_of([kind] if slash else ())
    found = [row for row in rows if row.name == bare]
    if not found:
        names = sorted({row.name for row in rows})
        near = difflib.get_close_matches(bare, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(names)}."
        raise SettingError(f"Nothing is named {name!r}{f' among {kind}' if slash else ''}. {hint}")
    return found


def _by_path(path: str) -> tuple[str, type[Any]]:
    """Import a class; its kind is that of the base that it derives from."""
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


def _of_scorer(name: str, kind: type[TokenScorer]) -> Iterator[tuple[str, str]]:
    yield "detail is", f"where the formula is {kind.detail_is}; calling the scorer gives large values for detail"
    taking = [
        row.name
        for row in registry.entries("reducers")
        if not row.problem and any(_takes_scorer(item) for item in parameters_of(registry.get("reducers", row.name)))
    ]
    yield "taken by", f"{', '.join(taking)}: scorer={name!r}, or --model.reducer.scorer {name}"


def _takes_scorer(item: Parameter) -> bool:
    return TokenScorer in (item.annotation, *get_args(item.annotation))


def _of_reducer(name: str, kind: type[TokenReducer]) -> Iterator[tuple[str, str]]:
    composite = kind.kinds is not TokenReducer.kinds
    if composite:
        yield "shrinks", "what the reducers it is made of shrink"
    elif kind.kind == "kv":
        yield "shrinks", "keys and values (kv); queries and outputs stay whole"
    else:
        yield "shrinks", "queries, keys and values (merge); the output is restored"
    parts = ", ".join(get_args(Part))
    where = "self" if kind.kind == "kv" and not composite else f"self by default; any of {parts}"
    yield "parts", where + (", as far as the reducers it is made of go" if composite else "")
    if kind.kind == "merge" and not composite:
        yield "progressive", "in vision transformers (adapters timm_vit, transformers_vit), cell as one number"
    families = [row.name for row in registry.entries("adapters") if not row.problem]
    yield "models", f"all that have an adapter: {', '.join(families)}"
    needed = "".join(f", {item.name}=..." for item in parameters_of(kind) if item.required)
    yield "use", f"bigain.attach(model, {name!r}{needed}), or --model.reducer {name}"


def _of_adapter(name: str, kind: type[Adapter]) -> Iterator[tuple[str, str]]:
    yield "family", kind.family
    yield "classes", ", ".join(kind.classes) or "told apart otherwise"
    version = installed_version(kind.library)
    here = f"{version} is installed" if version else "not installed"
    yield "library", f"{kind.library}, tested with {kind.tested or 'no version stated'}; {here}"
    planned = {
        "block": "the block's input, before the norm",
        "part": "the input of the first part that is reduced",
        "keys": "the mean of the heads' keys",
    }
    yield "plans from", f"{planned[kind.plan_from]} (plan_from={kind.plan_from!r})"
    yield "use", f"found by itself; or bigain.attach(model, ..., adapter={name!r})"

"""`bigain list`: the names that recipes may use, each with its package; broken ones with the reason."""

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from bigain import registry
from bigain.cli.classes import summary_of
from bigain.cli.parser import Parser
from bigain.cli.terminal import make_console
from bigain.data.classes import class_list, class_lists
from bigain.errors import SettingError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["KINDS", "LISTED", "Row", "make_parser", "rows_of", "run"]

KINDS = (*registry.KINDS, "tasks")
"""What has a class, which can be described."""

LISTED = (*KINDS, "classes")
"""What can be listed: lists of class names, too."""

_TASK_PACKAGES = ("tasks", "training")
"""Packages of bigain whose LightningModules recipes name by class path."""


@dataclass(frozen=True)
class Row:
    """One line of the list.

    Args:
        kind: `scorers`, `reducers`, `adapters`, `backbones`, `tasks` or `classes`.
        name: The name users write; for a task, its class's name.
        target: `module:Class`; for class names, the module.
        package: Its distribution and version.
        summary: First sentence of the class's docstring; for class names, what they are.
        problem: Why it cannot be used; empty for one that can.
    """

    kind: str
    name: str
    target: str
    package: str
    summary: str
    problem: str


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain list", description="List what recipes may name, and the package each comes from.")
    parser.add_argument("kinds", nargs="*", default=[], help=f"Any of {', '.join(LISTED)}; all by default.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Print the list, as a table or as JSON."""
    given = make_parser().parse_args([*arguments])
    rows = rows_of(given.kinds or LISTED)
    if given.json:
        print(_as_json(rows))
    else:
        make_console().print(_table(rows))


def rows_of(kinds: Sequence[str] = ()) -> list[Row]:
    """List kinds, by default those whose members are classes.

    Registered classes are imported, so that broken ones are listed with the reason. Tasks are
    read from their source code, since importing them would import Lightning, which takes seconds.

    Args:
        kinds: Any of `LISTED`.

    Raises:
        SettingError: There is no such kind.
    """
    if unknown := [kind for kind in kinds if kind not in LISTED]:
        raise SettingError(f"There are {', '.join(LISTED)}; got {unknown[0]!r}.")
    own = {"tasks": _tasks, "classes": _class_lists}
    return [row for kind in kinds or KINDS for row in (own[kind]() if kind in own else _registered(kind))]


def _registered(kind: str) -> Iterator[Row]:
    for entry in registry.entries(kind):
        summary = "" if entry.problem else summary_of(registry.get(kind, entry.name))
        yield Row(kind, entry.name, entry.target, entry.package, summary, entry.problem)


def _tasks() -> list[Row]:
    """Find the concrete classes that derive, directly or not, from Lightning's module."""
    found = {node.name: (module, node) for module, node in _task_classes()}
    package = f"bigain {registry.running_version()}"
    return [
        Row("tasks", name, f"{module}:{name}", package, summary_of(ast.get_docstring(node) or ""), "")
        for name, (module, node) in found.items()
        if _is_task(name, {key: inner for key, (_, inner) in found.items()}) and not _is_abstract(node)
    ]


def _class_lists() -> Iterator[Row]:
    package = f"bigain {registry.running_version()}"
    for one in map(class_list, class_lists()):
        summary = f"{one.title}: {len(one.classes)} classes. Prompt: {one.prompt}. Licence: {one.licence}."
        yield Row("classes", one.name, "bigain.data.classes", package, summary, "")


def _task_classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for package in _TASK_PACKAGES:
        folder = files("bigain") / package
        for file in sorted(folder.iterdir(), key=lambda path: path.name):
            if file.name.endswith(".py"):
                module = f"bigain.{package}.{file.name.removesuffix('.py')}"
                tree = ast.parse(file.read_text(encoding="utf-8"))
                yield from ((module, node) for node in tree.body if isinstance(node, ast.ClassDef))


def _is_task(name: str, classes: dict[str, ast.ClassDef]) -> bool:
    if name not in classes or name.startswith("_"):
        return name == "LightningModule"
    bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in classes[name].bases]
    return any(_is_task(base, classes) for base in bases)


def _is_abstract(node: ast.ClassDef) -> bool:
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    return any("abstractmethod" in ast.unparse(mark) for method in methods for mark in method.decorator_list)


def _as_json(rows: Sequence[Row]) -> str:
    """Write rows as a JSON list, with package name and version apart."""
    split = [asdict(row) | dict(zip(("package", "version"), row.package.split(" ", 1), strict=False)) for row in rows]
    return json.dumps([{"version": "", **row} for row in split], indent=2)


def _table(rows: Sequence[Row]) -> "RenderableType":
    """Make a table that folds long cells and cuts nothing."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for column in ("name", "package", "what it is"):
        table.add_column(column, overflow="fold")
    kind = ""
    for row in rows:
        if row.kind != kind:
            kind = row.kind
            table.add_row()
            table.add_row(Text(kind, style="bold"))
        text = Text(f"broken: {row.problem}", style="red") if row.problem else Text(row.summary or "(no docstring)")
        table.add_row(Text(f"  {row.name}"), Text(row.package), text)
    return table

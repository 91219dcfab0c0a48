"""List what recipes may name: scorers, reducers, adapters, backbones, and tasks."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bigain import registry
from bigain.cli.docstrings import summary_of
from bigain.errors import SettingError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["KINDS", "Row", "as_json", "rows_of", "tasks", "terminal_table"]

KINDS = (*registry.KINDS, "tasks")
"""What can be listed."""


@dataclass(frozen=True)
class Row:
    """One line of the list.

    Args:
        kind: `scorers`, `reducers`, `adapters`, `backbones` or `tasks`.
        name: The name users write; a task's is that of its class.
        target: `module:Class`.
        package: Distribution that brings it, and its version.
        summary: First sentence of the class's docstring.
        problem: Why it cannot be used; empty for one that can.
    """

    kind: str
    name: str
    target: str
    package: str
    summary: str
    problem: str


def rows_of(kinds: Sequence[str] = ()) -> list[Row]:
    """List kinds, all of them by default.

    What is broken is listed with its reason.

    Args:
        kinds: Any of `KINDS`.

    Raises:
        SettingError: There is no such kind.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise SettingError(f"There are {', '.join(KINDS)}; got {unknown[0]!r}.")
    return [row for kind in kinds or KINDS for row in (_tasks() if kind == "tasks" else _registered(kind))]


def tasks() -> list[type[Any]]:
    """Find bigain's own tasks, which need no registry: a recipe names them, or any other, by their class path."""
    from lightning.pytorch import LightningModule

    package = importlib.import_module("bigain.tasks")
    modules = [
        importlib.import_module(f"bigain.tasks.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    ]
    return [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, LightningModule)
        and kind.__module__ == module.__name__
        # EvaluationTask is what others derive from.
        and not inspect.isabstract(kind)
    ]


def as_json(rows: Sequence[Row]) -> str:
    """Write rows as a JSON list, with the version apart from the package's name."""
    told = []
    for row in rows:
        package, _, version = row.package.partition(" ")
        told.append(asdict(row) | {"package": package, "version": version})
    return json.dumps(told, indent=2)


def terminal_table(rows: Sequence[Row]) -> "RenderableType":
    """Make a table that folds what is long, and cuts nothing."""
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
        told = Text(f"broken: {row.problem}", style="red") if row.problem else Text(row.summary or "(no docstring)")
        table.add_row(Text(f"  {row.name}"), Text(row.package), told)
    return table


def _registered(kind: str) -> list[Row]:
    return [
        Row(kind, entry.name, entry.target, entry.package, _summary(kind, entry), entry.problem)
        for entry in registry.entries(kind)
    ]


def _summary(kind: str, entry: registry.Entry) -> str:
    return "" if entry.problem else summary_of(registry.get(kind, entry.name))


def _tasks() -> list[Row]:
    return [
        Row(
            "tasks",
            kind.__name__,
            f"{kind.__module__}:{kind.__qualname__}",
            f"bigain {registry.running_version()}",
            summary_of(kind),
            "",
        )
        for kind in tasks()
    ]

"""What several commands show in a terminal."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["did_you_mean", "make_console", "settings_lines"]


def did_you_mean(name: str, known: Iterable[str], count: int = 2, cutoff: float = 0.5) -> str:
    """Ask whether one of the nearest names was meant; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)
    return f"Did you mean {' or '.join(near)}?" if near else ""


class _Method(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def brief(self) -> str: ...


def settings_lines(methods: Iterable[_Method]) -> list[str]:
    """Return the lines below a table that say what each method but the first is; a column would be too narrow."""
    return [f"{one.name}: {one.brief}" for one in [*methods][1:]]


def make_console() -> "Console":
    """Make a console that raises when its pipe is closed, as `print` does."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise

    return PipeConsole()

"""Progress of a command: a bar in a terminal, lines in a log."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bigain.benchmark.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["shown_progress"]


@contextmanager
def shown_progress(console: "Console") -> Iterator[Progress]:
    """Yield what shows how far a command is: bars that are gone at the end, or lines where nobody watches."""
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    if not console.is_interactive:
        yield Progress(say)
        return
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TextColumn("{task.fields[images]}", markup=False),
        rich.TimeRemainingColumn(elapsed_when_finished=True),
        rich.TextColumn("{task.fields[note]}", markup=False, style="dim"),
    )
    with rich.Progress(*columns, console=console, transient=True) as bars:
        yield _LiveProgress(bars)


class _LiveProgress(Progress):
    """Draws a bar for each method, below the other lines."""

    def __init__(self, bars: "Bars") -> None:
        super().__init__(partial(bars.console.print, highlight=False, markup=False, soft_wrap=True))
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def begin(self, name: str, total: int) -> None:
        super().begin(name, total)
        if name in self._tasks:  # anew, with fewer rows
            self._bars.remove_task(self._tasks[name])
        self._tasks[name] = self._bars.add_task(name, total=total, images=f"0/{total}", note="")

    def reached(self, done: float) -> None:
        self._bars.update(self._tasks[self._name], completed=done)

    def finished(self, done: int, note: str) -> None:
        images = f"{done}/{self._total}"
        self._bars.update(self._tasks[self._name], completed=done, images=images, note=note)

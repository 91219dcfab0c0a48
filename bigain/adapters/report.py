"""What attaching did, in numbers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from bigain.grid import Grid

__all__ = ["AttachReport", "SiteReport"]


@dataclass(frozen=True)
class SiteReport:
    """One site taken.

    Args:
        name: Path of the attention module.
        grid: The grid it sees at the model's configured size.
        before: Tokens before reduction.
        after: Tokens after reduction.
    """

    name: str
    grid: Grid
    before: int
    after: int


@dataclass
class AttachReport:
    """The sites a reducer was attached to; detaches, also as a context manager.

    Args:
        reducer: The reducer, as text.
        family: The adapter's family.
        sites: One row a site.
    """

    reducer: str
    family: str
    sites: tuple[SiteReport, ...]
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def detach(self) -> None:
        """Leave the model as it was. A second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> "AttachReport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __str__(self) -> str:
        width = max(len(site.name) for site in self.sites)
        rows = [
            f"  {site.name:<{width}}  {'x'.join(map(str, site.grid.shape)):>9}  {site.before} -> {site.after} tokens"
            for site in self.sites
        ]
        return "\n".join([f"{self.reducer} on {self.family}: {len(self.sites)} sites", *rows])

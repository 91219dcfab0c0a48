"""What `attach` returns: the modules a reducer works in, and what can be set while it is attached."""

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType

from bigain.adapters.attachment import Attachment
from bigain.adapters.recording import Record
from bigain.errors import SettingError, SiteError
from bigain.grid import Grid
from bigain.profiling.operations import Operations

__all__ = ["AttachReport", "SiteReport", "too_few"]

_LINES = 16
"""More sites than this are summed up."""

_WIDTH = 100
"""Columns of text."""


@dataclass(frozen=True)
class SiteReport:
    """One module taken.

    Args:
        name: Its path in the model.
        grid: The grid it sees at the model's configured size.
        before: Tokens before reduction.
        after: Tokens after reduction.
        left_alone: Why it is left as it is, where it is.
    """

    name: str
    grid: Grid
    before: int
    after: int
    left_alone: str = ""


@dataclass
class AttachReport:
    """The modules a reducer was attached to; detaches, also as a context manager.

    Args:
        reducer: The reducer, as text.
        family: The adapter's family.
        sites: One row a module.
    """

    reducer: str
    family: str
    sites: tuple[SiteReport, ...]
    _attachment: Attachment = field(repr=False)
    _count: Callable[[], Operations] = field(repr=False)
    _undo: list[Callable[[], None]] = field(repr=False)

    def detach(self) -> None:
        """Leave the model as it was. A second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def flops(self) -> Operations:
        """Count the floating-point operations of a forward pass of one row, without and with the reducer.

        They are counted from shapes alone, on a copy of the model without values: that takes
        one to three seconds for the largest models.

        Raises:
            SiteError: The reducer is detached.
            SettingError: The model cannot run on made-up inputs, or the reducer not without values.
        """
        self._check_attached("flops")
        return self._count()

    @contextmanager
    def recording(self) -> Iterator[list[Record]]:
        """Record each plan that the passes within make, with the tokens that it is made from.

        Nothing is planned a second time. A plan that several parts of a block follow is one
        record; one that a reducer caches for several blocks is one record for each of them.
        Outside of the context nothing is recorded. The model must not be compiled.

        Raises:
            SiteError: The reducer is detached; or, in a pass, the model is compiled.
        """
        self._check_attached("recording")
        choices, records = self._attachment.choices, list[Record]()
        before, choices.records = choices.records, records
        try:
            yield records
        finally:
            choices.records = before

    def check_mixed_timesteps(self) -> None:
        """Refuse a reducer that rows at different timesteps could not follow in one batch.

        Raises:
            SettingError: At some block it merges at one timestep and shrinks keys and values at another.
        """
        self._attachment.check_mixed_timesteps()

    @contextmanager
    def at(self, timestep: float | None) -> Iterator[None]:
        """Say that every row of the passes within is at one timestep.

        A reducer that switches by timestep then runs only what that timestep needs,
        and is as short as that is. `None` says that rows may differ, as outside.
        """
        choices = self._attachment.choices
        before, choices.reducer = choices.reducer, self._attachment.settle(timestep)
        try:
            yield
        finally:
            choices.reducer = before

    @contextmanager
    def shared(self, rows: int) -> Iterator[None]:
        """Let each `rows` consecutive rows of the passes within share one plan.

        It is made from the mean of their tokens. Meant for a diffusion classifier, where
        the same image, timestep and noise is evaluated once for every class. Rows of
        several images that a pipeline guides come in another order, the unconditional ones
        of all images first: there, it is for one image at a time.

        Raises:
            SettingError: `rows` is below 1.
        """
        if not isinstance(rows, int) or rows < 1:
            raise SettingError(f"rows that share a plan are a whole number, 1 or more; got {rows!r}.")
        choices = self._attachment.choices
        before, choices.sharing = choices.sharing, rows
        try:
            yield
        finally:
            choices.sharing = before

    def _check_attached(self, method: str) -> None:
        if not self._undo:
            raise SiteError(f"The reducer is detached; call report.{method}() while it is attached.")

    def __enter__(self) -> "AttachReport":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __str__(self) -> str:
        rows = _lines(self.sites) if len(self.sites) <= _LINES else _summed_up(self.sites)
        on = f"on {self.family}: {len(self.sites)} site{'s' * (len(self.sites) != 1)}"
        head = textwrap.fill(f"{self.reducer} {on}", _WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        return "\n".join([head, *rows])


def too_few(min_tokens: int) -> str:
    """Say why a module is left alone."""
    return f"fewer than min_tokens={min_tokens}"


def _lines(sites: Sequence[SiteReport]) -> list[str]:
    return _laid_out([(site.name, site) for site in sites])


def _summed_up(sites: Sequence[SiteReport]) -> list[str]:
    """Give one line to sites whose paths differ in numbers alone, and whose tokens are the same."""
    groups: dict[SiteReport, int] = {}
    for site in sites:
        alike = replace(site, name=re.sub(r"(?<![^.])\d+(?![^.])", "*", site.name))
        groups[alike] = groups.get(alike, 0) + 1
    return _laid_out([(f"{count} x {alike.name}", alike) for alike, count in groups.items()])


def _laid_out(named: Sequence[tuple[str, SiteReport]]) -> list[str]:
    width = max(len(name) for name, _ in named)
    return [f"  {name:<{width}}  {'x'.join(map(str, site.grid.shape)):>9}  {_tokens(site)}" for name, site in named]


def _tokens(site: SiteReport) -> str:
    if site.left_alone:
        return f"{site.before} tokens, left alone: {site.left_alone}"
    return f"{site.before} -> {site.after} tokens"

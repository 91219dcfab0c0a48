"""How far a command is."""

import time
from collections.abc import Callable

from bigain.results.wording import about_seconds, quantity

__all__ = ["Progress"]

_PATIENCE = 10
"""Seconds after which somebody who watches lines wants to know how long it will take."""


class Progress:
    """Reports how far a command is, a line a step, as a log keeps it.

    Args:
        say: Called with each line. Default: nothing is said.
        clock: Seconds, from whatever beginning.
    """

    def __init__(
        self, say: Callable[[str], None] = lambda line: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.say, self._clock = say, clock
        self._name, self._total, self._estimated = "", 0, False
        self._first: tuple[float, float] | None = None

    def begin(self, name: str, total: int) -> None:
        """Begin a method, or begin it again.

        Args:
            name: Its name.
            total: Images it works on.
        """
        self._name, self._total, self._estimated, self._first = name, total, False, None

    def reached(self, done: float) -> None:
        """Update the images done, fractions included, after a pass. Says once how long it will take."""
        left = self._left(done)
        if left is not None and not self._estimated and done < self._total:
            self._estimated = True
            self.say(f"{self._name}: {quantity(self._total, 'image')}, done in about {about_seconds(left)}")

    def finished(self, done: int, note: str) -> None:
        """Report the images done, with a note about them and the time left."""
        left = self._left(done)
        more = "" if left is None or done >= self._total else f", about {about_seconds(left)} left"
        self.say(f"{self._name}: {done}/{self._total}, {note}{more}")

    def _left(self, done: float) -> float | None:
        """Return the seconds that are left at the pace since the first pass; `None` until it is worth saying.

        Whatever is compiled or loaded comes before the first pass is over, and says nothing about the others.
        """
        now = self._clock()
        if self._first is None:
            self._first = (done, now)
        first, began = self._first
        if now - began < _PATIENCE or done <= first:
            return None
        return (self._total - done) * (now - began) / (done - first)

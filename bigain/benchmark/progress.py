"""How far a command is."""

from collections.abc import Callable

__all__ = ["Progress"]


class Progress:
    """Hears how far a command is, and says a line of every step: what a log keeps.

    Args:
        say: Called with each line. Default: nothing is said.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self.say = say
        self._name, self._total = "", 0

    def begin(self, name: str, total: int) -> None:
        """Begin with a method, perhaps anew.

        Args:
            name: Its name.
            total: Images it works on.
        """
        self._name, self._total = name, total

    def reached(self, done: float) -> None:
        """Hear how many images are done, with the share of those in work; too often to say a line of it."""

    def finished(self, done: int, note: str) -> None:
        """Hear how many images are done, and what there is to say of them."""
        self.say(f"{self._name}: {done}/{self._total}, {note}")

"""Failures of checks, and the skip of checks that do not apply."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest import SkipTest

__all__ = ["ContractError", "Failure", "NotApplicable", "in_words"]

_LONGEST = 600
"""Characters of an exception's message that are shown."""


@dataclass(frozen=True)
class Failure:
    """One check that failed.

    Args:
        name: The check.
        why: Why it matters, in one sentence.
        seen: What was seen, and on which case.
        cause: What was raised.
    """

    name: str
    why: str
    seen: str
    cause: Exception | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        seen = self.seen.replace("\n", f"\n{' ' * 8}")
        return f"{self.name}\n  why:  {self.why}\n  seen: {seen}"


class ContractError(AssertionError):
    """A scorer, reducer or adapter breaks its contract.

    Args:
        subject: What was checked, in words.
        failures: Every check that failed.
    """

    def __init__(self, subject: str, failures: Sequence[Failure]) -> None:
        self.subject, self.failures = subject, tuple(failures)
        count = "1 check" if len(failures) == 1 else f"{len(failures)} checks"
        super().__init__("\n\n".join([f"{subject} fails {count}.", *map(str, failures)]))


class NotApplicable(SkipTest):
    """A check does not apply; pytest shows a skipped test with the reason."""


def in_words(error: Exception) -> str:
    """Put an exception in words."""
    text = str(error) if type(error) is AssertionError else f"{type(error).__name__}: {error}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."

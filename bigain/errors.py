"""The errors that bad input raises.

Every one is a plain sentence: what was given, what is accepted, where.
The command line prints it without a traceback.
"""

__all__ = ["BigainError", "DataError", "NumericalError", "SettingError", "SiteError", "first_line"]


class BigainError(Exception):
    """An error that the user can fix."""


class SettingError(BigainError, ValueError):
    """A setting, a name or a tensor shape that cannot be honoured."""


class DataError(BigainError, ValueError):
    """A file that is missing, unreadable or not what it should be."""


class SiteError(BigainError, RuntimeError):
    """A model to which a reducer cannot be attached."""


class NumericalError(BigainError, ArithmeticError):
    """A model that returned NaN or infinity."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of another library says, or its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

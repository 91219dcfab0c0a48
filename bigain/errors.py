"""The errors that bad input raises.

Every one is a plain sentence: what was given, what is accepted, where.
The command line prints it without a traceback.

None derives from `ValueError` or `TypeError`: jsonargparse takes those, raised while
a recipe is built, for a mismatch of types and buries the sentence under a list of
everything else it tried.
"""

__all__ = ["BigainError", "DataError", "NumericalError", "SettingError", "SiteError"]


class BigainError(Exception):
    """Anything the user can put right."""


class SettingError(BigainError):
    """A setting, a name or a tensor shape that cannot be honoured."""


class DataError(BigainError):
    """A file that is missing, unreadable or holds something else than it should."""


class SiteError(BigainError):
    """A model to which a reducer cannot be attached."""


class NumericalError(BigainError):
    """A model that returned NaN or infinity."""

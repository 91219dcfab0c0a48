"""Embedded weights and images, each in a folder with a card."""

from pathlib import Path

from bigain.errors import DataError

__all__ = ["asset"]

_HERE = Path(__file__).resolve().parent


def asset(name: str) -> Path:
    """Find an embedded file or folder by its name below `bigain/assets`.

    Raises:
        DataError: The installation lacks it.
    """
    path = _HERE / name
    if not path.exists():
        raise DataError(f"The embedded file {name} is missing from {_HERE}: reinstall bigain.")
    return path

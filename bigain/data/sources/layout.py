"""What the readers of official layouts share."""

from collections.abc import Sequence
from pathlib import Path

from bigain.data.decode import reason_of
from bigain.errors import DataError

__all__ = ["name_classes", "read_lines", "require"]


def require(kind: str, place: Path, remedy: str) -> None:
    """Refuse a data set of which a file or a folder is missing.

    Args:
        kind: The data set.
        place: The file or folder.
        remedy: What it is part of, and where that is to be had.

    Raises:
        DataError: There is nothing at the place.
    """
    if not place.exists():
        raise DataError(f"{kind}: {place} is missing; {remedy}.")


def read_lines(kind: str, place: Path) -> list[str]:
    """Return a text file's lines without spaces at their ends; empty ones are left out.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{kind}: {place} cannot be read: {reason_of(error)}") from error
    return [line.strip() for line in lines if line.strip()]


def name_classes(
    kind: str, path: Path, own: Sequence[str], given: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Decide on the class names of a data set that has its own.

    Given names that contain all of the data set's are the model's, in the model's order: labels follow the names.
    Other names are other words for the same classes, in the data set's order.

    Args:
        kind: The data set.
        path: Where it is.
        own: Its class names in label order.
        given: The names that the user gave, if any.

    Returns:
        The class names, and the new number of each of the data set's labels.

    Raises:
        DataError: More or fewer names than classes.
    """
    if not given:
        return tuple(own), tuple(range(len(own)))
    if set(own) <= set(given):
        number = {name: label for label, name in enumerate(given)}
        return tuple(given), tuple(number[name] for name in own)
    if len(given) != len(own):
        raise DataError(
            f"{path} is {kind} with {len(own)} classes ({own[0]} .. {own[-1]}), but {len(given)} names are given "
            f"({given[0]} .. {given[-1]}): give one for each, in this order, or none."
        )
    return tuple(given), tuple(range(len(own)))

"""Files that appear whole or not at all, and readers that say what is wrong with a file."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigain.errors import DataError, SettingError

__all__ = [
    "FORMAT",
    "check_absent",
    "read_json",
    "read_result",
    "whole_folder",
    "write_json",
    "write_result",
    "write_whole",
]

FORMAT = 2
"""Number of the format of results; it rises when an old reader would misread a new result."""


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end."""
    # Several processes of one run may write the same content at once.
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that the file is whole or absent."""
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: The file is missing, not JSON, or JSON of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a JSON {_kind(content)}; accepted is an object: {{..}}.")
    return content


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write the JSON of a result, with the number of its format."""
    write_json(path, {"format": FORMAT, **content})


def read_result(path: Path) -> dict[str, Any]:
    """Read the JSON of a result.

    Args:
        path: The file, or the folder of a result with `result.json` in it.

    Raises:
        DataError: It cannot be read, or has a format that this version does not read.
    """
    path = path / "result.json" if path.is_dir() else path
    content = read_json(path)
    number = content.get("format")
    if number is None:
        raise DataError(
            f"{path} has no format number: it is no result of bigain, or one from before version 0.2. "
            f"This version reads format {FORMAT}."
        )
    if number != FORMAT or isinstance(number, bool):
        newer = isinstance(number, int) and number > FORMAT
        way = "use a newer bigain" if newer else "run it again"
        raise DataError(f"{path} has format {number!r}; this version reads format {FORMAT}: {way}.")
    return content


def _kind(content: object) -> str:
    return {list: "list", str: "string", type(None): "null", bool: "truth value"}.get(type(content), "number")


def check_absent(place: Path | None) -> None:
    """Refuse a file or folder that exists or cannot be written, before any work.

    Raises:
        SettingError: It exists already.
        DataError: Its folder is missing, or nothing can be written there.
    """
    if place is None:
        return
    parent = place.absolute().parent
    if not parent.is_dir():
        raise DataError(f"--output {place} cannot be written: there is no folder {place.parent}.")
    if place.exists():
        raise SettingError(f"{place} exists already: choose another --output, or remove it. Nothing was overwritten.")
    try:
        # Permissions alone do not say it: a disk may be mounted to be read, and root may do everything.
        Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=parent)).rmdir()
    except OSError as error:
        raise DataError(
            f"--output {place} cannot be written: {parent} lets you write nothing ({error.strerror})."
        ) from error


@contextmanager
def whole_folder(place: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, and rename it at the end; it may take the place of an older one.

    Raises:
        DataError: Something else has taken the place meanwhile; what was written stays in the temporary folder.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", suffix=".tmp", dir=place.absolute().parent))
    old = temporary.with_suffix(".old")
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        temporary.chmod(0o777 & ~_umask())
        if replace and place.exists():
            place.rename(old)
        temporary.rename(place)
    except OSError as error:
        raise DataError(
            f"{place} could not be put in place ({error.strerror}): the result is in {temporary}."
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    """Return the mask that new files have; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Folders that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from os.path import lexists
from pathlib import Path
from tempfile import TemporaryDirectory

from bigain.errors import SettingError

__all__ = ["new_folder"]


@contextmanager
def new_folder(folder: Path, option: str) -> Iterator[Path]:
    """Fill a folder beside its place, and put it there by one rename when the block ends without an exception.

    Args:
        folder: Folder to make.
        option: Option of the command line that names it.

    Raises:
        SettingError: It exists, or cannot be made.
    """
    try:
        if lexists(folder):
            raise SettingError(f"{folder} exists already; give a folder that does not, with {option}.")
        if not folder.parent.is_dir():
            raise SettingError(f"{folder} cannot be made, since there is no folder {folder.parent}.")
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as passing:
            # One level down, where permissions are those of any new folder.
            written = Path(passing) / "new"
            written.mkdir()
            yield written
            written.rename(folder)
    except OSError as error:
        raise SettingError(f"{folder} cannot be written: {error}.") from error

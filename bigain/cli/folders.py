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
    """Yield a temporary folder beside `folder`, and rename it to `folder` if the block ends without an exception.

    Args:
        folder: Folder to make.
        option: Option of the command line that names it.

    Raises:
        SettingError: The folder exists, or cannot be made.
    """
    try:
        if lexists(folder):
            raise SettingError(f"{folder} exists already; give a folder that does not, with {option}.")
        if not folder.parent.is_dir():
            raise SettingError(f"{folder} cannot be made, since there is no folder {folder.parent}.")
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            # A subfolder has the usual permissions, which a temporary folder has not.
            written = Path(temporary) / "new"
            written.mkdir()
            yield written
            written.rename(folder)
    except OSError as error:
        raise SettingError(f"{folder} cannot be written: {error}.") from error

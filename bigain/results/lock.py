"""One process at a time works on a result."""

import fcntl
import os
import warnings
import weakref
from io import TextIOWrapper
from pathlib import Path

from bigain.errors import SettingError

__all__ = ["FolderLock"]

_OPEN: "weakref.WeakSet[TextIOWrapper]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    for file in list(_OPEN):
        file.close()


# A worker process can outlive a killed run by seconds; it must not keep the lock.
os.register_at_fork(after_in_child=_leave_to_parent)


class FolderLock:
    """The kernel's lock (`flock`) on a file; it ends with the process, however that ends.

    Args:
        path: The file; it is created.
        of: What is locked, for the error.

    Raises:
        SettingError: Another process has the lock.
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path, of: Path) -> None:
        self._file = self._acquire(path, of)
        _OPEN.add(self._file)

    def release(self) -> None:
        """Release the lock; the file stays."""
        self._file.close()

    @staticmethod
    def _acquire(path: Path, of: Path) -> TextIOWrapper:
        while True:
            file = path.open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise SettingError(
                    f"Another process is at work on {of}: wait until it has ended, or choose another --output. "
                    "Nothing was changed."
                ) from None
            except OSError as error:
                warnings.warn(
                    f"The file system of {path} has no locks ({error.strerror}): "
                    "make sure that one process at a time writes there.",
                    stacklevel=4,
                )
                return file
            # The previous owner may have removed the file after it was opened here.
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
            file.close()

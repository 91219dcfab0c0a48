"""Images in one folder, without labels."""

from collections.abc import Sequence
from pathlib import Path

from bigain.data.sources.base import ImageSource
from bigain.data.sources.folder import SUFFIXES
from bigain.errors import DataError

__all__ = ["FlatSource"]


class FlatSource(ImageSource):
    """The images that lie in a folder itself; sub-folders are not looked into.

    Args:
        path: The folder.
        classes: Class names in label order, for whoever predicts labels.

    Raises:
        DataError: There are no images.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.source, self.path, self.classes = str(path), path, tuple(classes)
        self.names = tuple(sorted(file.name for file in path.iterdir() if file.suffix.lower() in SUFFIXES))
        if not self.names:
            raise DataError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))}).")
        self.labels = ((),) * len(self.names)

    def read(self, row: int) -> bytes:
        return (self.path / self.names[row]).read_bytes()

    def files(self) -> list[Path]:
        return [self.path / name for name in self.names]

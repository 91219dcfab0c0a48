"""Images without labels: those in one folder, or a single one."""

from collections.abc import Sequence
from pathlib import Path

from bigain.data.sources.base import ImageSource
from bigain.data.sources.folder import SUFFIXES
from bigain.errors import DataError

__all__ = ["FlatSource"]


class FlatSource(ImageSource):
    """The images that lie in a folder itself; sub-folders are not looked into.

    Args:
        path: The folder, or the file of a single image.
        classes: Class names in label order, for whoever predicts labels.

    Raises:
        DataError: There are no images.

    Attributes:
        others: Ends of the names of files that are taken for no images, such as `.heic`, sorted.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.source, self.classes = str(path), tuple(classes)
        self.path = path if path.is_dir() else path.parent
        files = [file for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file()]
        self.names = tuple(sorted(file.name for file in files if file.suffix.lower() in SUFFIXES))
        shown = [file for file in files if not file.name.startswith(".")]
        self.others = sorted(file.suffix or file.name for file in shown if file.suffix.lower() not in SUFFIXES)
        if not self.names:
            beside = f"; there are {', '.join(dict.fromkeys(self.others))}" if self.others else ""
            raise DataError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))}{beside}).")
        self.labels = ((),) * len(self.names)

    def read(self, row: int) -> bytes:
        return (self.path / self.names[row]).read_bytes()

    def files(self) -> list[Path]:
        return [self.path / name for name in self.names]

"""Images in class folders."""

from collections.abc import Sequence
from pathlib import Path

from bigain.data.sources.base import ImageSource
from bigain.errors import DataError

__all__ = ["SUFFIXES", "FolderSource"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
"""Ends of the names of image files."""


class FolderSource(ImageSource):
    """A folder with one sub-folder of images per class.

    Args:
        path: The folder.
        classes: Class names in label order. The sub-folders must be among them;
            without it, the sorted names of the sub-folders are the classes.

    Raises:
        DataError: No class folders, a folder that is not a class, or no images.
    """

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
        if not folders:
            raise DataError(
                f"{path} has no class folders: give a folder with one sub-folder of images per class, "
                "such as cat/ and dog/."
            )
        self.source, self.path = str(path), path
        self.classes = tuple(classes) if classes else tuple(folder.name for folder in folders)
        label_of = {name: label for label, name in enumerate(self.classes)}
        strangers = [folder.name for folder in folders if folder.name not in label_of]
        if strangers:
            raise DataError(
                f"{path}: the folders {', '.join(strangers[:5])} are no classes; these are {_listed(self.classes)}."
            )
        files = [
            (file.relative_to(path).as_posix(), label_of[folder.name])
            for folder in folders
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in SUFFIXES
        ]
        if not files:
            raise DataError(f"{path}: the class folders hold no images ({', '.join(sorted(SUFFIXES))}).")
        self.names = tuple(name for name, _ in files)
        self.labels = tuple((label,) for _, label in files)

    def read(self, row: int) -> bytes:
        return (self.path / self.names[row]).read_bytes()

    def files(self) -> list[Path]:
        return [self.path / name for name in self.names]


def _listed(classes: Sequence[str], most: int = 20) -> str:
    """Join the names of classes, the first `most` of them."""
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    return ", ".join(classes[:most]) + more

"""Which data set is at a path."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bigain.data.sources.base import ImageSource
from bigain.data.sources.cifar import CifarSource
from bigain.data.sources.coco import CocoSource
from bigain.data.sources.folder import SUFFIXES
from bigain.data.sources.hugging_face import HuggingFaceSource
from bigain.data.sources.imagenet import ImageNetSource
from bigain.data.sources.pets import PetsSource
from bigain.data.sources.webdataset import WebDatasetSource
from bigain.errors import DataError

__all__ = ["is_labelled", "is_official", "open_official"]


class _Kind(Protocol):
    def __call__(self, path: Path, split: str, classes: Sequence[str] | None) -> ImageSource: ...

    def is_at(self, path: Path) -> bool: ...


_KINDS: tuple[tuple[_Kind, str, str], ...] = (
    (CifarSource, "test", "train"),
    (CocoSource, "val2017", "train2017"),
    (PetsSource, "test", "trainval"),
    (ImageNetSource, "val", "train"),
    (HuggingFaceSource, "test", "train"),
    (WebDatasetSource, "test", "train"),
)
"""Each layout with its splits to test and to train on; the first that a folder or file looks like is taken."""


def is_official(path: Path) -> bool:
    """Say whether a path has a layout with classes of its own: a known data set's, Hugging Face's or WebDataset's."""
    return any(source.is_at(path) for source, _, _ in _KINDS)


def is_labelled(path: Path, named: bool) -> bool:
    """Say whether the images of a folder have labels: class folders, or those of a known data set.

    Args:
        path: The folder or file. A file that is no image has labels: parquet, arrow, a shard.
        named: Whether the user named classes. Some of ImageNet's validation images, with classes of the user's own,
            are photos like others.

    Raises:
        DataError: Images lie both in the folder and in its sub-folders.
    """
    if path.is_file():
        return path.suffix.lower() not in SUFFIXES
    here = sum(child.suffix.lower() in SUFFIXES for child in path.iterdir())
    if is_official(path) and not (named and here):
        return True
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    # A folder without images is no class: an earlier result, say.
    below = [one.name for one in folders if any(file.suffix.lower() in SUFFIXES for file in one.rglob("*"))]
    if here and below:
        raise DataError(
            f"{path} holds {here} images itself and more in {', '.join(below[:3])}: give a folder of images, or one "
            "with a sub-folder for each class."
        )
    return bool(below)


def open_official(path: Path, classes: Sequence[str] | None = None, train: bool = False) -> ImageSource | None:
    """Open what has a layout with classes of its own.

    Args:
        path: The folder, or a file of Hugging Face's or WebDataset's.
        classes: Other names for the classes; the data set's own by default.
        train: Take the images to train on.

    Returns:
        The data set; nothing if the path has no such layout.

    Raises:
        DataError: A part of the data set is missing or damaged.
    """
    for source, test_split, train_split in _KINDS:
        if source.is_at(path):
            return source(path, train_split if train else test_split, classes)
    return None

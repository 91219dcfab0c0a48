"""The Oxford-IIIT Pet data set in its official layout."""

from collections.abc import Sequence
from pathlib import Path

from bigain.data.sources.base import ImageSource
from bigain.data.sources.layout import name_classes, read_lines, require
from bigain.errors import DataError

__all__ = ["PetsSource"]

_KIND = "Oxford-IIIT Pets"
_HOME = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
_LISTS = ("trainval", "test")


class PetsSource(ImageSource):
    """Cats and dogs of 37 breeds: `images/*.jpg`, and the splits in `annotations/trainval.txt` and `test.txt`.

    A line of a split is `Abyssinian_201 1 1 1`: image, class from 1, species, breed of the species. The classes are
    named as their images are.

    Args:
        path: The folder in which `images` and `annotations` are.
        split: `test` or `trainval`.
        classes: Other names for the classes, in their order.

    Raises:
        DataError: A part is missing, or a list is damaged.

    Source:
        Parkhi, Vedaldi, Zisserman and Jawahar, Cats and Dogs, CVPR 2012; the layout is that of `images.tar.gz` and
        `annotations.tar.gz`.
    """

    def __init__(self, path: Path, split: str = "test", classes: Sequence[str] | None = None) -> None:
        self.source, self.path = str(path), path / "images"
        require(_KIND, self.path, f"it is in images.tar.gz, at {_HOME}")
        place = path / "annotations" / f"{split}.txt"
        require(_KIND, place, f"it is in annotations.tar.gz, at {_HOME}")
        listed = _read_list(place)
        if not listed:
            raise DataError(f"{_KIND}: {place} lists no images.")
        others = (path / "annotations" / f"{name}.txt" for name in _LISTS if name != split)
        known = [entry for other in others if other.is_file() for entry in _read_list(other)]
        self.classes, number = name_classes(_KIND, path, _breeds(place, listed + known), classes)
        self.names = tuple(f"{name}.jpg" for name, _ in listed)
        self.labels = tuple((number[label],) for _, label in listed)

    @staticmethod
    def is_at(path: Path) -> bool:
        """Say whether the layout, or a part of it, is in a folder."""
        lists = any((path / "annotations" / f"{name}.txt").is_file() for name in _LISTS)
        # Without its lists the folder of images would pass for one class, images.
        return lists or next((path / "images").glob("Abyssinian_*.jpg"), None) is not None

    def read(self, row: int) -> bytes:
        return (self.path / self.names[row]).read_bytes()

    def files(self) -> list[Path]:
        return [self.path / name for name in self.names]


def _read_list(place: Path) -> list[tuple[str, int]]:
    """Return the images of a split with their labels, from 0."""
    found = []
    for line in read_lines(_KIND, place):
        if line.startswith("#"):
            continue
        name, *numbers = line.split()
        if not numbers or not numbers[0].isdecimal() or numbers[0] == "0":
            raise DataError(f"{_KIND}: {place} has the line {line!r}; a line is such as 'Abyssinian_201 1 1 1'.")
        found.append((name, int(numbers[0]) - 1))
    return found


def _breeds(place: Path, listed: Sequence[tuple[str, int]]) -> list[str]:
    """Return the name of each class."""
    breed_of: dict[int, str] = {}
    for name, label in listed:
        breed = name.rpartition("_")[0].replace("_", " ")
        if breed_of.setdefault(label, breed) != breed:
            raise DataError(f"{_KIND}: {place} gives class {label + 1} to {breed_of[label]} and to {breed}.")
    gaps = [label + 1 for label in range(len(breed_of)) if label not in breed_of]
    if gaps:
        raise DataError(f"{_KIND}: {place} lists no image of class {gaps[0]}, but of classes after it.")
    return [breed_of[label] for label in range(len(breed_of))]

"""What a source of images is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ImageSource"]


class ImageSource(ABC):
    """Encoded images with names and labels, read one at a time.

    A source finds and checks its names and labels when it is opened; the images themselves
    are read later, in threads and in worker processes.

    Attributes:
        source: Where the images come from, for results and errors.
        classes: Class names in label order.
        names: A name for each image, unique within the source.
        labels: The labels of each image: none, one or several.
        left_out: How many images are not among these because they have no labels.
    """

    source: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    left_out: int = 0

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Read the encoded bytes of one image.

        Raises:
            OSError: The bytes cannot be read.
        """

    def files(self) -> Sequence[Path] | None:
        """Return the file that each image is read from, so that a change can be noticed without reading it.

        `None`, which is the default, where it is not known: the images are then read each time.
        """
        return None

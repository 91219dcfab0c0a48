"""Labelled images, read one at a time."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bigain.data.decode import decode_image, read_image, reason_of
from bigain.data.sources.base import ImageSource
from bigain.data.sources.folder import FolderSource
from bigain.data.sources.official import open_official
from bigain.data.sources.parquet import ParquetSource
from bigain.errors import DataError, SettingError

__all__ = ["ImageDataset", "Subset"]

Subset = Literal["first", "balanced"]

_SHOWN = 5
"""Broken images that an error names."""

_WINDOW = 256
"""Images whose bytes are in memory at once during a check."""


class ImageDataset(Dataset[dict[str, Any]]):
    """Images of a source, decoded when they are asked for.

    Args:
        source: Where encoded images, names and labels come from.
        size: Side of the square images, in pixels.
        rows: Which images of the source, in order; all of them by default.
        prepare: Makes each RGB image a tensor, in place of the resize and crop to `size`.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        rows: Sequence[int] | None = None,
        prepare: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        self._source = source
        self._rows = tuple(range(len(source.names))) if rows is None else tuple(rows)
        self._fingerprint = ""
        self._prepare = prepare
        self.size = size
        self.source, self.classes, self.left_out = source.source, source.classes, source.left_out
        self.names = tuple(source.names[row] for row in self._rows)
        self.labels = tuple(source.labels[row] for row in self._rows)
        self._most = max(1, *(len(labels) for labels in self.labels)) if self.labels else 1

    @classmethod
    def open(cls, path: Path, size: int, classes: Sequence[str] | None = None, train: bool = False) -> "ImageDataset":
        """Open a parquet file, a folder of class folders, or a known data set as it is published.

        Args:
            path: A `.parquet` file (`image`, `label`, optionally `file`), a folder with one sub-folder of images
                per class, or one with the official layout of CIFAR, COCO, ImageNet or Oxford-IIIT Pets.
            size: Side of the square images, in pixels.
            classes: Class names in label order. A folder's sub-folders must be among
                them; without it, the sorted sub-folder names are the classes. A known data set has names
                of its own; others must be as many.
            train: Take a known data set's images to train on.

        Raises:
            DataError: Nothing at the path, no classes, a label out of range, or a part of a known data set is missing.
        """
        path = Path(path)
        if path.is_dir():
            return cls(open_official(path, classes, train) or FolderSource(path, classes), size)
        if path.is_file():
            return cls(ParquetSource(path, classes), size)
        raise DataError(
            f"No images at {path}: give a parquet file with the columns image and label, "
            "a folder with one sub-folder of images per class, or CIFAR, COCO, ImageNet or Oxford-IIIT Pets."
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `index`, the decoded `image` (uint8, `[3, size, size]`) and `labels` of one image.

        Raises:
            DataError: The image cannot be read.
        """
        try:
            encoded = self._source.read(self._rows[index])
            image = self._prepare(read_image(encoded)) if self._prepare else decode_image(encoded, self.size)
        except Exception as error:  # each of Pillow's decoders has errors of its own
            raise DataError(f"{self.source}: {self.names[index]} cannot be read ({reason_of(error)}).") from error
        return {"index": index, "image": image, "labels": self.labels[index]}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Decode several images.

        Returns:
            `index` int64 `[B]`, `image` uint8 `[B, 3, size, size]` and `labels` int64 `[B, L]`, where L is
            the largest number of labels in the data set and an image with fewer has -1 for the rest.
        """
        padded = [[*self.labels[index], *[-1] * (self._most - len(self.labels[index]))] for index in indices]
        return {
            "index": torch.tensor(indices, dtype=torch.int64),
            "image": torch.stack([self[index]["image"] for index in indices]),
            "labels": torch.tensor(padded, dtype=torch.int64),
        }

    def subset(self, count: int | None, how: Subset = "first", seed: int = 0) -> "ImageDataset":
        """Choose at most `count` images; all of them for `None`.

        `balanced` takes equal numbers of each class as far as they go. It depends on the
        names, the labels and the seed alone, so that it is the same on every machine, and
        a larger choice contains every smaller one. An image with several labels counts for
        its first. The chosen images stay in the order of the data set.

        Raises:
            DataError: A count below 1.
            SettingError: `how` is unknown.
        """
        if how not in ("first", "balanced"):
            raise SettingError(f"subset is first or balanced; got {how!r}.")
        if count is not None and count < 1:
            raise DataError(f"limit is the number of images to read, 1 or more; got {count}.")
        if count is None or count >= len(self):
            return self
        chosen = range(count) if how == "first" else _balanced(self.names, self.labels, count, seed)
        return ImageDataset(self._source, self.size, [self._rows[index] for index in chosen])

    def resized(self, size: int) -> "ImageDataset":
        """Return the same images at another size."""
        images = ImageDataset(self._source, size, self._rows)
        images._fingerprint = self._fingerprint
        return images

    def prepared(self, prepare: Callable[[Image.Image], Tensor]) -> "ImageDataset":
        """Return the same images, each made by `prepare` from the RGB image as it is, in its own size."""
        return ImageDataset(self._source, self.size, self._rows, prepare)

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of SHA-256 over encoded images, names and labels."""
        return self.check()

    def check(self) -> str:
        """Decode every image, on the first call, and return the fingerprint.

        Raises:
            DataError: Some images are unreadable or truncated; the message names them.
        """
        if self._fingerprint:
            return self._fingerprint
        digest = hashlib.sha256()
        broken: list[str] = []
        for index, (content, reason) in enumerate(self._inspected()):
            digest.update(content)
            digest.update(f"{self.names[index]}\0{self.labels[index]}\n".encode())
            if reason:
                broken.append(f"{self.names[index]} ({reason})")
        if broken:
            more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
            raise DataError(
                f"{self.source}: {len(broken)} of {len(self)} images cannot be read: "
                + "; ".join(broken[:_SHOWN])
                + more
                + ". Nothing was run. Replace or remove them."
            )
        self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def _inspected(self) -> Iterator[tuple[bytes, str]]:
        """Yield each image's digest and, if it cannot be read, the reason."""
        with ThreadPoolExecutor() as threads:
            for first in range(0, len(self), _WINDOW):
                yield from threads.map(self._inspect, self._rows[first : first + _WINDOW])

    def _inspect(self, row: int) -> tuple[bytes, str]:
        try:
            encoded = self._source.read(row)
            read_image(encoded)
        except Exception as error:  # each of Pillow's decoders has errors of its own
            return b"", reason_of(error)
        return hashlib.sha256(encoded).digest(), ""


def _balanced(names: Sequence[str], labels: Sequence[tuple[int, ...]], count: int, seed: int) -> list[int]:
    """Choose images in rounds of one of each class, in an order that a hash decides."""

    def drawn(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode()).digest()

    of_class: dict[int, list[int]] = {}
    for index, own in enumerate(labels):
        if own:
            of_class.setdefault(own[0], []).append(index)
    # If the last round is too small for every class, the hash decides which classes it takes.
    turns = [
        (number, drawn(f"class {label}"), index)
        for label, members in of_class.items()
        for number, index in enumerate(sorted(members, key=lambda index: drawn(names[index])))
    ]
    return sorted(index for _, _, index in sorted(turns)[:count])

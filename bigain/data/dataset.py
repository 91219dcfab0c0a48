"""Labelled images, read one at a time."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bigain.data.decode import decode_image, read_image, reason_of
from bigain.data.sources.base import ImageSource
from bigain.data.sources.coco import CocoSource
from bigain.data.sources.flat import FlatSource
from bigain.data.sources.folder import FolderSource
from bigain.data.sources.official import is_labelled, open_official
from bigain.data.sources.parquet import ParquetSource
from bigain.errors import DataError, SettingError
from bigain.results.cache import TensorCache

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
        skipped: Names of images that would be among them and cannot be read.
        prepare: Makes each RGB image a tensor, in place of the resize and crop to `size`.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        rows: Sequence[int] | None = None,
        skipped: Sequence[str] = (),
        prepare: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        self._source, self.skipped = source, tuple(skipped)
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
        """Open a parquet file, a folder of class folders, or a data set as it is published.

        Args:
            path: A `.parquet` file (`image`, `label`, optionally `file`), a folder with one sub-folder of images
                per class, one with the official layout of CIFAR, COCO, ImageNet or Oxford-IIIT Pets, what
                `save_to_disk` of Hugging Face's `datasets` wrote, or WebDataset shards (`.tar`).
            size: Side of the square images, in pixels.
            classes: Class names in label order. A folder's sub-folders must be among
                them; without it, the sorted sub-folder names are the classes. A data set that has names
                of its own takes others if they are as many.
            train: Take a data set's images to train on.

        Raises:
            DataError: Nothing at the path, no classes, a label out of range, or a part of a data set is missing.
        """
        path = Path(path)
        if not path.exists():
            raise DataError(
                f"No images at {path}: give a parquet file with the columns image and label, a folder with one "
                "sub-folder of images per class, CIFAR, COCO, ImageNet or Oxford-IIIT Pets, a data set that Hugging "
                "Face's save_to_disk wrote, or WebDataset shards."
            )
        source = open_official(path, classes, train)
        if source is None:
            source = FolderSource(path, classes) if path.is_dir() else ParquetSource(path, classes)
        return cls(source, size)

    @classmethod
    def open_unlabelled(cls, path: Path, size: int) -> "ImageDataset":
        """Open images whose labels do not matter, as the reference of generated ones.

        What `open` takes, and a folder of images beside. Of COCO all images are there, also those without annotations.

        Raises:
            DataError: Nothing at the path, or a part of a known data set is missing.
        """
        path = Path(path)
        if path.is_dir() and CocoSource.is_at(path):
            return cls(CocoSource.every_image(path), size)
        if path.is_dir() and any(path.iterdir()) and not is_labelled(path, named=False):
            return cls(FlatSource(path, ()), size)
        return cls.open(path, size)

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
        rows = [self._rows[index] for index in chosen]
        return ImageDataset(self._source, self.size, rows, self.skipped, self._prepare)

    def resized(self, size: int) -> "ImageDataset":
        """Return the same images at another size."""
        images = ImageDataset(self._source, size, self._rows, self.skipped, self._prepare)
        images._fingerprint = self._fingerprint
        return images

    def prepared(self, prepare: Callable[[Image.Image], Tensor]) -> "ImageDataset":
        """Return the same images, each made by `prepare` from the RGB image as it is, in its own size."""
        images = ImageDataset(self._source, self.size, self._rows, self.skipped, prepare)
        images._fingerprint = self._fingerprint
        return images

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of SHA-256 over encoded images, names and labels."""
        return self.check()

    def check(self) -> str:
        """Decode every image, on the first call, and return the fingerprint.

        Raises:
            DataError: Some images are unreadable or truncated; the message names them.
        """
        self.checked()
        return self._fingerprint

    def checked(self, skip: bool | None = None, say: Callable[[str], object] = print) -> "ImageDataset":
        """Decode every image, unless that was done before, and return those that can be read.

        Args:
            skip: Leave out images that cannot be read; their names become those of `skipped`. Without a choice,
                the error does not offer it.
            say: Called with a sentence that counts and names them.

        Raises:
            DataError: Some images are unreadable or truncated and are not to be skipped, or all are.
        """
        if self._fingerprint:
            return self
        digest, whole, broken = hashlib.sha256(), list[int](), dict[str, str]()
        for index, (content, reason) in enumerate(self._inspected()):
            if reason:
                broken[self.names[index]] = reason
                continue
            whole.append(self._rows[index])
            digest.update(content)
            digest.update(f"{self.names[index]}\0{self.labels[index]}\n".encode())
        fingerprint = digest.hexdigest()[:16]
        if not broken:
            self._fingerprint = fingerprint
            return self
        found = f"{self.source}: {len(broken)} of {len(self)} images cannot be read: {_named(broken)}."
        if not (skip and whole):
            offer = ", or leave them out: skip_corrupt=true" if skip is False else ""
            raise DataError(f"{found} Nothing was run. Replace or remove them{offer}.")
        say(f"{found} They are left out.")
        images = ImageDataset(self._source, self.size, whole, (*self.skipped, *broken), self._prepare)
        images._fingerprint = fingerprint
        return images

    def check_once(self) -> str:
        """`check`, which is not repeated for files that have not changed since: their size and times are as they were.

        Raises:
            DataError: Some images are unreadable or truncated; the message names them.
        """
        files = self._source.files()
        if self._fingerprint or files is None:
            return self.check()
        digest = hashlib.sha256()
        for row, name, labels in zip(self._rows, self.names, self.labels, strict=True):
            about = files[row].stat()
            times = f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"
            digest.update(f"{files[row].absolute()}\0{name}\0{labels}\0{times}\n".encode())
        cache, key = TensorCache([], {"fingerprints": "of files"}), digest.digest()
        found = cache.find(key)
        if found is None:
            text = torch.frombuffer(bytearray(self.check().encode()), dtype=torch.uint8)
            found = cache.keep(key, {"fingerprint": text})
        self._fingerprint = bytes(found["fingerprint"].tolist()).decode()
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


def _named(broken: Mapping[str, str]) -> str:
    """List broken images, each with the reason."""
    first = "; ".join(f"{name} ({reason})" for name, reason in [*broken.items()][:_SHOWN])
    return first + (f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else "")


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

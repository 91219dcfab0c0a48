"""CIFAR-10 and CIFAR-100 in their binary versions."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigain.data.sources.base import ImageSource
from bigain.data.sources.layout import name_classes, read_lines, require
from bigain.errors import DataError

__all__ = ["CifarSource"]

_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class _Version:
    """One of the two data sets: its folder and files, and which of a record's label bytes is the class."""

    kind: str
    folder: str
    pickled: str
    names: str
    test: tuple[str, ...]
    train: tuple[str, ...]
    label_bytes: int


_VERSIONS = (
    _Version(
        "CIFAR-10",
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        "batches.meta.txt",
        ("test_batch.bin",),
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        1,
    ),
    _Version(
        "CIFAR-100", "cifar-100-binary", "cifar-100-python", "fine_label_names.txt", ("test.bin",), ("train.bin",), 2
    ),
)


class CifarSource(ImageSource):
    """CIFAR's binary version: records of label bytes and 32 x 32 pixels, a plane for each colour.

    CIFAR-100's records have the coarse label before the fine one, which is the class. The version for Python is a
    pickle, which may run anything, and is never opened. Images are handed out as PNG without compression: the same
    bytes with every library.

    Args:
        path: `cifar-10-batches-bin` or `cifar-100-binary`, or the folder in which one of them is.
        split: `test` or `train`.
        classes: Other names for the classes, in their order.

    Raises:
        DataError: A file is missing or damaged, both are in the folder, or the version for Python alone.

    Source:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    def __init__(self, path: Path, split: str = "test", classes: Sequence[str] | None = None) -> None:
        version, self.path = _find(path)
        self.source, files = str(path), version.train if split == "train" else version.test
        remedy = f"it is in the binary version of {version.kind}, at {_HOME}"
        for name in (version.names, *files):
            require(version.kind, self.path / name, remedy)
        own = [name.replace("_", " ") for name in read_lines(version.kind, self.path / version.names)]
        self.classes, number = name_classes(version.kind, path, own, classes)
        self._skip = version.label_bytes
        labels = {name: _read_labels(version, self.path / name, len(own)) for name in files}
        self._places = tuple((name, row) for name in files for row in range(len(labels[name])))
        self.names = tuple(f"{name}:{row:05d}" for name, row in self._places)
        self.labels = tuple((number[label],) for name in files for label in labels[name])

    @staticmethod
    def is_at(path: Path) -> bool:
        """Say whether either data set is in a folder, in either version."""
        return bool(_binaries(path)) or _pickled(path) is not None

    def read(self, row: int) -> bytes:
        name, record = self._places[row]
        with (self.path / name).open("rb") as file:
            file.seek(record * (self._skip + _PIXELS) + self._skip)
            planes = np.frombuffer(file.read(_PIXELS), np.uint8).reshape(3, _SIDE, _SIDE)
        return _png(planes.transpose(1, 2, 0))


def _binaries(path: Path) -> list[tuple[_Version, Path]]:
    """Return the binary versions that are at a path or in it."""
    return [
        (version, place)
        for version in _VERSIONS
        for place in (path, path / version.folder)
        if place.is_dir() and (place.absolute().name == version.folder or (place / version.names).is_file())
    ]


def _pickled(path: Path) -> _Version | None:
    """Return of which data set the version for Python is at a path or in it."""
    for version in _VERSIONS:
        if path.absolute().name == version.pickled or (path / version.pickled).is_dir():
            return version
    return None


def _find(path: Path) -> tuple[_Version, Path]:
    found, pickled = _binaries(path), _pickled(path)
    if len(found) > 1:
        raise DataError(f"{path} holds CIFAR-10 and CIFAR-100: give {found[0][1]} or {found[1][1]}.")
    if found:
        return found[0]
    if pickled is not None:
        raise DataError(
            f"{path} holds the version of {pickled.kind} for Python, a pickle, which is never opened: "
            f"get the binary version ({pickled.folder}), at {_HOME}."
        )
    raise DataError(f"{path} is neither CIFAR-10 nor CIFAR-100: get a binary version, at {_HOME}.")


def _read_labels(version: _Version, file: Path, classes: int) -> list[int]:
    record, size = version.label_bytes + _PIXELS, file.stat().st_size
    if not size or size % record:
        raise DataError(
            f"{version.kind}: {file} has {size} bytes, no whole number of records of {record}; "
            f"get it again, at {_HOME}."
        )
    labels: list[int] = np.memmap(file, np.uint8, "r").reshape(-1, record)[:, version.label_bytes - 1].tolist()
    if max(labels) >= classes:
        raise DataError(f"{version.kind}: {file} has label {max(labels)}; {version.names} names {classes} classes.")
    return labels


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Write a small picture as PNG; `pixels` is uint8, `[H, W, 3]`."""
    height, width, _ = pixels.shape
    # Each line begins with the number of its filter, 0 for none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 0)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body)) for tag, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

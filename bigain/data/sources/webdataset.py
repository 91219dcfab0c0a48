"""WebDataset shards: tar files whose members `key.jpg` and `key.cls` are one image and its label."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigain.data.decode import reason_of
from bigain.data.sources.base import ImageSource
from bigain.data.sources.cells import number_classes
from bigain.data.sources.folder import SUFFIXES
from bigain.data.sources.layout import name_classes, read_lines
from bigain.errors import DataError

__all__ = ["WebDatasetSource"]

_KIND = "WebDataset"
_LABELS = ("cls", "json", "txt")
_NAMES = "classnames.txt"
_SPLITS = {"test": ("test", "validation", "val"), "train": ("train",)}


@dataclass
class _Sample:
    """One key of a shard: where the image's bytes are, and what says its class."""

    image: str = ""
    place: tuple[int, int] = (0, 0)
    labels: dict[str, bytes] = field(default_factory=dict)


class WebDatasetSource(ImageSource):
    """Shards in a folder, or one of them.

    A shard is looked through once, when it is opened: where each image's bytes begin, and its label. Images are
    then read from there in any order, so that subsets, chunks and resuming work as with every other source. Members
    with the same name up to the first dot of the file's name are one sample. Its class is in `cls`, a number; or else
    in `json`, as `label`, a number or a name; or else in `txt`, a name. The names of numbered classes are a line each
    of `classnames.txt`, in the folder or above it; without it they are `class 0`, `class 1`, ..

    Args:
        path: A shard, or a folder with shards of one split, or with those of each in a folder named `test`,
            `validation`, `val` or `train`; where shards of several are in one folder, their file names have the word.
        split: `test` or `train`.
        classes: Other names for the classes, in their order; for classes by name, the model's.

    Raises:
        DataError: A shard is compressed or damaged, an image has no label, or several, or the shards are of several
            splits and no name says which.

    Source:
        Aizman, Maltby and Breuel, High Performance I/O For Large Scale Deep Learning, 2019; `classnames.txt` is that
        of CLIP benchmark's data sets.
    """

    def __init__(self, path: Path, split: str = "test", classes: Sequence[str] | None = None) -> None:
        self.source, shards = str(path), [path] if path.is_file() else _shards(path, split)
        found = [(shard, sample) for shard in shards for sample in _samples(shard)]
        if not found:
            raise DataError(f"{_KIND}: {path} holds no images ({', '.join(sorted(SUFFIXES))}).")
        self._places = tuple((shard, *sample.place) for shard, sample in found)
        self.names = tuple(f"{shard.name}/{sample.image}" for shard, sample in found)
        labels = [_label(name, sample) for name, (_, sample) in zip(self.names, found, strict=True)]
        self.classes, self.labels = _classified(path, shards[0].parent, labels, self.names, classes)

    @staticmethod
    def is_at(path: Path) -> bool:
        """Say whether shards are in a folder or in its splits, or a path is one."""
        if path.is_file():
            return path.suffix == ".tar" or path.name.endswith((".tar.gz", ".tgz"))
        splits = {name for names in _SPLITS.values() for name in names}
        if not any(True for place in (path, *(path / name for name in splits)) for _ in place.glob("*.tar")):
            return False
        # An archive beside class folders is what these were unpacked from.
        return all(child.name in splits or not child.is_dir() for child in path.glob("[!.]*"))

    def read(self, row: int) -> bytes:
        shard, offset, size = self._places[row]
        with shard.open("rb") as file:
            file.seek(offset)
            encoded = file.read(size)
        if len(encoded) < size:
            raise OSError(f"{shard} ends within it")
        return encoded


def _shards(path: Path, split: str) -> list[Path]:
    """Return the shards of a split."""
    words = _SPLITS[split]
    places = (path, *(path / word for word in words))
    shards = next((found for place in places if (found := sorted(place.glob("*.tar")))), [])
    if not shards:
        raise DataError(
            f"{_KIND}: {path} has no shards of the split {split}, *.tar, in itself or in {' or '.join(words)}."
        )
    kinds = {re.sub(r"[-_.]*\d*$", "", shard.stem): shard for shard in shards}
    if len(kinds) == 1:
        return shards
    chosen = [shard for shard in shards if any(word in re.split(r"[-_.\d]+", shard.stem.lower()) for word in words)]
    if not chosen:
        raise DataError(
            f"{_KIND}: {shards[0].parent} holds shards of several kinds ({', '.join(sorted(kinds)[:5])}), none named "
            f"{' or '.join(words)}: give a folder with those of one alone."
        )
    return chosen


def _samples(shard: Path) -> Iterator[_Sample]:
    """Look through a shard; samples without an image are left to whoever wrote them."""
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                # "._x" and the like are an operating system's own.
                if not member.isreg() or not stem or not kind:
                    continue
                sample = samples.setdefault(f"{folder}/{stem}", _Sample())
                _add(sample, shard, archive, member, kind.lower())
            _check_end(shard, archive.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        with shard.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        why = "it is compressed: unpack it to .tar" if packed else reason_of(error)
        raise DataError(f"{_KIND}: {shard} is no tar file that can be read at any place: {why}.") from error
    yield from (sample for sample in samples.values() if sample.image)


def _check_end(shard: Path, offset: int) -> None:
    """Refuse a shard without the block of zeros at its end: tarfile would leave out what was cut off."""
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing; copy it again")


def _add(sample: _Sample, shard: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str) -> None:
    if f".{kind}" in SUFFIXES:
        if sample.image:
            raise DataError(f"{_KIND}: {shard} has two images of one key, {sample.image} and {member.name}.")
        sample.image, sample.place = member.name, (member.offset_data, member.size)
    elif kind in _LABELS:
        content = archive.extractfile(member)
        sample.labels[kind] = content.read() if content else b""


def _label(name: str, sample: _Sample) -> int | str:
    """Return the number or the name of a sample's class."""
    kind = next((kind for kind in _LABELS if kind in sample.labels), None)
    if kind is None:
        raise DataError(
            f"{_KIND}: {name} has no label: {', '.join(_LABELS)} are missing beside it. "
            "An archive of images alone has to be unpacked."
        )
    try:
        text = sample.labels[kind].decode("utf-8").strip()
        label: object = json.loads(text)["label"] if kind == "json" else int(text) if kind == "cls" else text
    except (ValueError, KeyError, TypeError) as error:
        wanted = "an object with the class as label" if kind == "json" else "the number of the class"
        raise DataError(f"{_KIND}: the {kind} of {name} is not {wanted}: {reason_of(error)}.") from error
    if not isinstance(label, (int, str)) or isinstance(label, bool) or label == "":
        raise DataError(f"{_KIND}: the {kind} of {name} has label {label!r}; accepted are a number and a name.")
    return label


def _classified(
    path: Path, folder: Path, labels: Sequence[int | str], names: Sequence[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Return class names, and the label of each image."""
    numbers = [label for label in labels if isinstance(label, int)]
    words = [label for label in labels if isinstance(label, str)]
    if numbers and words:
        raise DataError(f"{_KIND}: {path} has both numbers and names for classes, such as {numbers[0]} and {words[0]}.")
    own = sorted(set(words)) or _numbered(numbers, folder, classes)
    for label, name in zip(numbers, names, strict=False):
        if not 0 <= label < len(own):
            raise DataError(f"{_KIND}: {path}: {name} has label {label}; there are {len(own)} classes, from 0.")
    if words and classes and (strange := sorted(set(words) - set(classes))):
        raise DataError(f"{_KIND}: {path} has classes that are none of this model's, such as {strange[0]!r}.")
    found, number = name_classes(_KIND, path, own, classes)
    place = {name: label for label, name in enumerate(own)}
    return found, tuple((number[place[label] if isinstance(label, str) else label],) for label in labels)


def _numbered(numbers: Sequence[int], folder: Path, classes: Sequence[str] | None) -> Sequence[str]:
    """Name numbered classes; those that the user named need not all be in the shards."""
    file = next((place / _NAMES for place in (folder, folder.parent) if (place / _NAMES).is_file()), None)
    if file is not None:
        return read_lines(_KIND, file)
    return classes or number_classes(numbers, folder)

"""ImageNet-1K and its parts: the validation images as downloaded, or class folders."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from bigain.data.classes import name_synsets
from bigain.data.decode import reason_of
from bigain.data.sources.base import ImageSource
from bigain.data.sources.folder import FolderSource
from bigain.data.sources.layout import name_classes, read_lines, require
from bigain.errors import DataError

__all__ = ["ImageNetSource"]

_KIND = "ImageNet"
_HOME = "https://image-net.org/download.php"
_WNID = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_DEVKIT = ("ILSVRC2012_devkit_t12/data", "data", ".")
_MAPPINGS = ("LOC_synset_mapping.txt", "words.txt", "words", "Labels.json")


class ImageNetSource(ImageSource):
    """Images labelled by WordNet identifiers, such as n01440764; the classes are in the order of these, as usual.

    Either class folders that are named so, of ImageNet-1K, ImageNet-100 or others; or the 50,000 validation images in
    one folder, whose labels are in the devkit, `ILSVRC2012_devkit_t12`, in the folder or beside it.

    A class is named by the first of its words, or all of them where another class of ImageNet-1K has the same first, or
    with its identifier where these are the same as well. The words are those of the devkit's `meta.mat`, or else of
    `LOC_synset_mapping.txt`, `words.txt` or `Labels.json`, in the folder or beside it, or else those that ship. An
    identifier that none of them has is the class's name.

    Args:
        path: The folder of images or of class folders, or the one in which it is as `split`.
        split: `val` or `train`.
        classes: Other names for the classes, in their order; or identifiers, in the model's order.

    Raises:
        DataError: No images, no devkit for the validation images, or files that contradict each other.

    Source:
        Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015; the layout is that of
        `ILSVRC2012_img_val.tar` and `ILSVRC2012_devkit_t12.tar.gz`.
    """

    def __init__(self, path: Path, split: str = "val", classes: Sequence[str] | None = None) -> None:
        self.source, self.path = str(path), path if _has_images(path) else path / split
        if not _has_images(self.path):
            raise DataError(
                f"{_KIND}: {self.path} holds neither ILSVRC2012_val_*.JPEG nor class folders such as n01440764; "
                f"images are at {_HOME}."
            )
        places = list(dict.fromkeys((self.path, path, self.path.parent)))
        devkit = [place / part for place in places for part in _DEVKIT]
        meta = next((folder / _META for folder in devkit if (folder / _META).is_file()), None)
        if _is_flat(self.path):
            wnids, words, found = _labelled_by_devkit(self.path, devkit, meta)
        else:
            wnids, words, found = _labelled_by_folders(self.path, places, meta)
        own = wnids if classes and set(wnids) <= set(classes) else name_synsets(wnids, words)
        self.classes, number = name_classes(_KIND, path, own, classes)
        self.names = tuple(name for name, _ in found)
        self.labels = tuple((number[label],) for _, label in found)

    @staticmethod
    def is_at(path: Path) -> bool:
        """Say whether one of the layouts is in a folder."""
        return any(_has_images(place) for place in (path, path / "val", path / "train"))

    def read(self, row: int) -> bytes:
        return (self.path / self.names[row]).read_bytes()

    def files(self) -> list[Path]:
        return [self.path / name for name in self.names]


def _is_flat(folder: Path) -> bool:
    return next(folder.glob("ILSVRC2012_val_*.JPEG"), None) is not None


def _has_images(folder: Path) -> bool:
    if not folder.is_dir() or _is_flat(folder):
        return folder.is_dir()
    inside = [child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    return bool(inside) and all(_WNID.fullmatch(name) for name in inside)


def _labelled_by_folders(
    folder: Path, places: Sequence[Path], meta: Path | None
) -> tuple[list[str], dict[str, str], list[tuple[str, int]]]:
    """Return identifiers, words, and each image with its label."""
    source = FolderSource(folder)
    words = {wnid: text for _, wnid, text in _read_meta(meta)} if meta else _mapped_words(places)
    labels = (labels[0] for labels in source.labels)
    return list(source.classes), words, list(zip(source.names, labels, strict=True))


def _labelled_by_devkit(
    folder: Path, devkit: Sequence[Path], meta: Path | None
) -> tuple[list[str], dict[str, str], list[tuple[str, int]]]:
    """Return identifiers, words, and each validation image with its label."""
    truth = next((place / _TRUTH for place in devkit if (place / _TRUTH).is_file()), folder / _DEVKIT[0] / _TRUTH)
    for place in (truth, meta or truth.with_name(_META)):
        require(_KIND, place, f"it is in ILSVRC2012_devkit_t12.tar.gz, at {_HOME}: unpack it here or beside the images")
    synsets = _read_meta(meta or truth.with_name(_META))
    wnids = sorted(wnid for _, wnid, _ in synsets)
    label_of = {str(number): wnids.index(wnid) for number, wnid, _ in synsets}
    answers = read_lines(_KIND, truth)
    found = []
    for name in sorted(file.name for file in folder.iterdir()):
        if (match := _VALIDATION.fullmatch(name)) is None:
            continue
        line = int(match[1])
        if not 1 <= line <= len(answers) or answers[line - 1] not in label_of:
            raise DataError(f"{_KIND}: {truth} has no class of {_META} for {name}; get both again, at {_HOME}.")
        found.append((name, label_of[answers[line - 1]]))
    if not found:
        raise DataError(f"{_KIND}: no image in {folder} is named as ILSVRC2012_val_00000001.JPEG is.")
    return wnids, {wnid: text for _, wnid, text in synsets}, found


def _read_meta(place: Path) -> list[tuple[int, str, str]]:
    """Return number, identifier and words of the devkit's classes; the groups of classes among them are left out."""
    try:
        synsets: Any = np.atleast_1d(loadmat(place, squeeze_me=True)["synsets"])
        columns = (synsets[name] for name in ("num_children", "ILSVRC2012_ID", "WNID", "words"))
        return [
            (int(number), str(wnid), str(words))
            for children, number, wnid, words in zip(*columns, strict=True)
            if not children
        ]
    except Exception as error:  # a damaged file has errors of every kind
        raise DataError(f"{_KIND}: {place} is not the devkit's table of classes: {reason_of(error)}") from error


def _mapped_words(places: Sequence[Path]) -> dict[str, str]:
    """Return the words of each identifier from the first file that has them."""
    files = (place / name for place in places for name in _MAPPINGS)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    if file.suffix != ".json":
        pairs = (line.split(maxsplit=1) for line in read_lines(_KIND, file))
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and _WNID.fullmatch(pair[0])}
    try:
        return {str(wnid): str(words) for wnid, words in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{_KIND}: {file} is no mapping of identifiers to words: {reason_of(error)}") from error

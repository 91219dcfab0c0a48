"""A data set of Hugging Face's `datasets` on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bigain.data.decode import reason_of
from bigain.data.sources.base import ImageSource
from bigain.data.sources.cells import (
    check_labels,
    features_of,
    has_image,
    image_fields,
    number_classes,
    read_cell,
    unique_names,
)
from bigain.data.sources.layout import name_classes, require
from bigain.errors import DataError
from bigain.results.files import read_json

__all__ = ["HuggingFaceSource"]

_KIND = "Hugging Face data set"
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_LABELS = ("label", "fine_label")
"""Columns to take for the class where several could be it."""

_SPLIT_NAMES = {"test": ("test", "validation", "val"), "train": ("train",)}


class HuggingFaceSource(ImageSource):
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, or one arrow file of `datasets`.

    The arrow files are mapped into memory: opening takes no longer for large ones, and nothing is unpickled or run.
    Which columns are images and labels is in the features that `datasets` writes into the files: one `Image`, and one
    `ClassLabel`, whose names are the classes. Of several `ClassLabel`, `label` or `fine_label` is taken. A column
    of whole numbers named `label` does as well; its classes are numbered.

    Args:
        path: The folder, or an arrow file.
        split: `test`, which stands for `validation` and `val` too where a folder of splits has no `test`; or `train`.
        classes: Other names for the classes, in their order.

    Raises:
        DataError: A file is missing or damaged, no column or several hold images or classes, a label is out of
            range, or a row has no image.

    Source:
        The layout is that of `datasets` 5.2, and has been since 2.0.
    """

    def __init__(self, path: Path, split: str = "test", classes: Sequence[str] | None = None) -> None:
        self.source, folder = str(path), path if path.is_file() else _folder_of_split(path, split)
        self._files = [path] if path.is_file() else _arrow_files(folder)
        self._table: Any = None
        features = features_of(self._rows.schema, self._files[0])
        self._image, label = _columns(folder, features)
        named = image_fields(folder, self._image, self._rows.schema.field(self._image).type)
        self.names = unique_names(self._paths() if "path" in named else [None] * len(self._rows))
        labels = self._rows[label].to_pylist()
        own = features[label].get("names") or classes or number_classes(labels, folder)
        check_labels(labels, self.names, own, folder)
        self.classes, number = name_classes(_KIND, path, own, classes)
        self.labels = tuple((number[value],) for value in labels)
        self._check_images()

    @staticmethod
    def is_at(path: Path) -> bool:
        """Say whether the layout is in a folder, or a path is an arrow file."""
        return path.suffix == ".arrow" or any((path / name).is_file() for name in (_STATE, _SPLITS))

    @property
    def _rows(self) -> Any:
        """The rows of all files; a worker process maps them for itself."""
        if self._table is None:
            self._table = pa.concat_tables([_mapped(file) for file in self._files])
        return self._table

    def read(self, row: int) -> bytes:
        return read_cell(self._rows[self._image][row], self._files[0].parent)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_table": None}

    def _paths(self) -> list[object]:
        """Return the files' names that are stored beside the images."""
        column = self._rows[self._image]
        return [name for chunk in column.chunks for name in chunk.field("path").to_pylist()]

    def _check_images(self) -> None:
        column = self._rows[self._image]
        empty = [row for row, cell in enumerate(column) if not has_image(cell)]
        if empty:
            raise DataError(f"{self.source}: {len(empty)} rows hold no image, the first is {self.names[empty[0]]}.")


def _folder_of_split(path: Path, split: str) -> Path:
    """Return the folder of a split; a folder that was saved without splits is its own."""
    if not (path / _SPLITS).is_file():
        return path
    there = [str(name) for name in read_json(path / _SPLITS).get("splits", ())]
    found = next((name for name in _SPLIT_NAMES[split] if name in there), None)
    if found is None:
        raise DataError(
            f"{_KIND}: {path} has the splits {', '.join(there)}, and none named {' or '.join(_SPLIT_NAMES[split])}: "
            f"give the folder of one, such as {path / (there or ['test'])[0]}."
        )
    require(_KIND, path / found / _STATE, f"{path / _SPLITS} names the split: copy the whole folder again")
    return path / found


def _arrow_files(folder: Path) -> list[Path]:
    """Return the files that a folder's state names."""
    state = read_json(folder / _STATE)
    if state.get("_indices_data_files"):
        raise DataError(f"{_KIND}: {folder} has rows by a list of indices: save it again, with datasets 2 or newer.")
    try:
        files = [folder / str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{_KIND}: {folder / _STATE} names no arrow files: {type(error).__name__} {error}.") from error
    for file in files:
        require(_KIND, file, f"{_STATE} names it: copy the whole folder again")
    if not files:
        raise DataError(f"{_KIND}: {folder} has no arrow files.")
    return files


def _mapped(file: Path) -> pa.Table:
    """Map a file into memory; `datasets` writes streams."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a readable arrow file of datasets: {reason_of(error)}") from error


def _columns(where: Path, features: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    images = [name for name, about in features.items() if about.get("_type") == "Image"]
    labels = [name for name, about in features.items() if about.get("_type") == "ClassLabel"]
    if len(labels) != 1:
        labels = [name for name in _LABELS if name in (labels or features)][:1] or labels
    for found, kind in ((images, "Image"), (labels, "ClassLabel")):
        if len(found) != 1:
            raise DataError(
                f"{_KIND}: {where} has the columns {', '.join(features)}, of which {', '.join(found) or 'none'} "
                f"{'are' if len(found) > 1 else 'is'} {kind}; one is needed: cast or remove columns, and save it again."
            )
    return images[0], labels[0]

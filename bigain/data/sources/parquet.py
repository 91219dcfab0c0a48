"""Images in a parquet file."""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
from bigain.errors import DataError

__all__ = ["ParquetSource"]


class ParquetSource(ImageSource):
    """A parquet file with the columns `image`, `label` and optionally `file`.

    `image` has encoded bytes, or a struct with `bytes` as in Hugging Face data sets;
    where `bytes` is empty, the file at `path` is read, relative to the parquet file.
    Row groups are read one at a time, and the last one stays in memory.

    Args:
        path: The file.
        classes: Class names in label order; without it, those that Hugging Face's `datasets` wrote into the file,
            or `class 0`, `class 1`, ..

    Raises:
        DataError: Not a parquet file, other columns, a label out of range, or a row without an image.
    """

    _file: pq.ParquetFile | None
    _rows: Any
    _group: int
    _lock: threading.Lock

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self.source, self.path = str(path), path
        file = self._open()
        columns = set(file.schema_arrow.names)
        self._image_columns = _image_columns(path, file.schema_arrow)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._ends = list(accumulate(sizes))
        with _readable(path):
            table = file.read(columns=["label", *({"file"} & columns)])
        labels = table["label"].to_pylist()
        self.names = unique_names(table["file"].to_pylist() if "file" in columns else [None] * len(labels))
        own = features_of(file.schema_arrow, path)["label"].get("names")
        self.classes = tuple(classes or own or number_classes(labels, path))
        check_labels(labels, self.names, self.classes, path)
        self.labels = tuple((label,) for label in labels)
        self._forget()
        self._check_images(file)

    def read(self, row: int) -> bytes:
        group = bisect_right(self._ends, row)
        with self._lock:
            if group != self._group:
                self._file = self._file or self._open()
                self._rows = _cells(self._file.read_row_group(group, columns=self._image_columns))
                self._group = group
            rows = self._rows
        return read_cell(rows[row - (self._ends[group - 1] if group else 0)], self.path.parent)

    def files(self) -> list[Path] | None:
        return None if "image.path" in self._image_columns else [self.path] * len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the file for itself.
        return {key: value for key, value in vars(self).items() if key not in ("_file", "_rows", "_group", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        """Start without an open file."""
        self._file, self._rows, self._group, self._lock = None, None, -1, threading.Lock()

    def _open(self) -> pq.ParquetFile:
        with _readable(self.path):
            return pq.ParquetFile(self.path)

    def _check_images(self, file: pq.ParquetFile) -> None:
        """Refuse rows without an image; row groups whose statistics rule out nulls are not read."""
        empty: list[int] = []
        for group in range(file.num_row_groups):
            if _is_full(file.metadata.row_group(group), self._image_columns[0]):
                continue
            with _readable(self.path):
                rows = _cells(file.read_row_group(group, columns=self._image_columns))
            first = self._ends[group - 1] if group else 0
            empty += [first + row for row in range(len(rows)) if not has_image(rows[row])]
        if empty:
            raise DataError(f"{self.path}: {len(empty)} rows hold no image bytes, the first is {self.names[empty[0]]}.")


def _image_columns(path: Path, schema: pa.Schema) -> list[str]:
    """Return which columns to read for an image: bytes, path, or both."""
    missing = {"image", "label"} - set(schema.names)
    if missing:
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}; "
            f"missing: {', '.join(sorted(missing))}. image holds encoded bytes, label an integer."
        )
    return [f"image.{field}" for field in image_fields(path, "image", schema.field("image").type)] or ["image"]


def _cells(table: pa.Table) -> Any:
    return table.column("image").combine_chunks()


def _is_full(group: Any, name: str) -> bool:
    """Say whether a row group's statistics rule out nulls in a column."""
    columns = [group.column(number) for number in range(group.num_columns)]
    found = next(column for column in columns if column.path_in_schema == name).statistics
    return found is not None and found.has_null_count and found.null_count == 0


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {reason_of(error)}") from error

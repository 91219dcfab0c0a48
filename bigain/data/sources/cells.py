"""What the readers of tables share: cells that hold images, and columns of names and labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bigain.data.decode import reason_of
from bigain.errors import DataError

__all__ = ["check_labels", "features_of", "has_image", "image_fields", "number_classes", "read_cell", "unique_names"]


def image_fields(where: object, name: str, column: pa.DataType) -> list[str]:
    """Return what a column of images has: nothing below it, or `bytes`, `path` or both.

    Raises:
        DataError: The column holds no images.
    """
    if pa.types.is_binary(column) or pa.types.is_large_binary(column):
        return []
    fields = [field.name for field in column] if pa.types.is_struct(column) else []
    if not {"bytes", "path"} & set(fields):
        raise DataError(
            f"{where}: the column {name} is {column}; accepted are encoded bytes, "
            "or a struct with the encoded bytes as bytes or the file's path as path."
        )
    return [field for field in ("bytes", "path") if field in fields]


def read_cell(cell: Any, folder: Path) -> bytes:
    """Return the encoded bytes in a cell, or those of the file that it names, relative to a folder."""
    value = cell.as_py()
    encoded, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    return bytes(encoded or b"") if path is None or encoded else (folder / path).read_bytes()


def has_image(cell: Any) -> bool:
    """Say whether a cell has bytes or a path."""
    if not cell.is_valid:
        return False
    if not isinstance(cell, pa.StructScalar):
        return True
    return any(name in cell and cell[name].is_valid for name in ("bytes", "path"))


def unique_names(files: Sequence[object]) -> tuple[str, ...]:
    """Name rows by their files, or by their numbers where there are none, each otherwise than the others."""
    names = tuple(str(name) if name else f"row {row}" for row, name in enumerate(files))
    return names if len(set(names)) == len(names) else tuple(f"{name} (row {row})" for row, name in enumerate(names))


def number_classes(labels: Sequence[object], where: object) -> tuple[str, ...]:
    """Name the classes of images whose labels are numbers: `class 0`, `class 1`, ..

    Raises:
        DataError: There are no labels.
    """
    if not labels:
        raise DataError(f"{where}: no images found.")
    return tuple(f"class {k}" for k in range(1 + max(label if isinstance(label, int) else -1 for label in labels)))


def check_labels(labels: Sequence[object], names: Sequence[str], classes: Sequence[str], where: object) -> None:
    """Refuse labels that are no numbers of classes.

    Raises:
        DataError: There are none, or one is out of range; the message names the image.
    """
    if not labels:
        raise DataError(f"{where}: no images found.")
    for label, name in zip(labels, names, strict=True):
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(classes):
            accepted = f"0 to {len(classes) - 1} ({classes[0]} .. {classes[-1]})" if classes else "from 0"
            raise DataError(f"{where}: image {name} has label {label}; accepted are whole numbers {accepted}.")


def features_of(schema: pa.Schema, file: Path) -> dict[str, dict[str, Any]]:
    """Return what `datasets` says of each column; nothing where it says nothing."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        said = about.get("info", {}).get("features", {})
    except (ValueError, AttributeError) as error:
        raise DataError(f"{file} has features that cannot be read: {reason_of(error)}") from error
    return {name: said[name] if isinstance(said.get(name), dict) else {} for name in schema.names}

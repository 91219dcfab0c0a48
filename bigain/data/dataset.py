"""A set of labelled images held in memory, and where it may come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from pyarrow import ArrowException
from torch import Tensor
from torch.utils.data import Dataset

from bigain.data.decode import decode_all
from bigain.errors import DataError

__all__ = ["CIFAR10_CLASSES", "LabelledImages", "load_images"]

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""Class names in label order."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@dataclass(frozen=True)
class LabelledImages(Dataset[dict[str, Tensor]]):
    """Decoded images with labels and names.

    Args:
        images: uint8, `[N, 3, H, W]`.
        labels: int64, `[N]`.
        names: N names, unique within the set, as they appear in results.
        classes: Class names in label order.
        source: Where the images came from, for results and errors.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": self.labels[index], "index": torch.tensor(index)}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Fetch a whole batch in three indexing operations (a DataLoader calls this)."""
        rows = torch.as_tensor(indices)
        return {"image": self.images[rows], "label": self.labels[rows], "index": rows}

    def first(self, count: int | None) -> "LabelledImages":
        """Keep the first `count` images; all of them for `None`."""
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise DataError(f"{self.source}: cannot keep {count} images; give 1 or more.")
        return LabelledImages(self.images[:count], self.labels[:count], self.names[:count], self.classes, self.source)


def load_images(
    path: Path, size: int, classes: Sequence[str] | None = None, limit: int | None = None
) -> LabelledImages:
    """Load a parquet file (`image`, `label`, optionally `file`) or a folder of class folders.

    Args:
        path: A `.parquet` file, or a folder with one sub-folder of images per class.
        size: Side of the square images, in pixels.
        classes: Class names in label order. A folder's sub-folders must be among
            them; without it, the sorted sub-folder names are the classes.
        limit: Read only the first so many images.

    Raises:
        DataError: Nothing there, no classes, a label out of range, an unreadable image.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise DataError(f"limit is the number of images to read, 1 or more; got {limit}.")
    if path.is_dir():
        return _from_folder(path, size, classes, limit)
    if path.is_file():
        return _from_parquet(path, size, classes, limit)
    raise DataError(
        f"No images at {path}: give a parquet file with the columns image and label, "
        "or a folder with one sub-folder of images per class."
    )


def _from_parquet(path: Path, size: int, classes: Sequence[str] | None, limit: int | None) -> LabelledImages:
    try:
        table = pq.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from error
    missing = {"image", "label"} - set(table.column_names)
    if missing:
        raise DataError(
            f"{path} has the columns {', '.join(table.column_names)}; "
            f"missing: {', '.join(sorted(missing))}. image holds encoded bytes, label an integer."
        )
    table = table if limit is None else table.slice(0, limit)
    labels = table["label"].to_pylist()
    rows = table["image"].to_pylist()
    cells = [row["bytes"] if isinstance(row, dict) else row for row in rows]
    files = table["file"].to_pylist() if "file" in table.column_names else [None] * len(cells)
    names = tuple(str(name) if name else f"row {i}" for i, name in enumerate(files))
    names = names if len(set(names)) == len(names) else tuple(f"{n} (row {i})" for i, n in enumerate(names))
    empty = [names[i] for i, cell in enumerate(cells) if not isinstance(cell, bytes)]
    if empty:
        raise DataError(f"{path}: {len(empty)} rows hold no image bytes, the first is {empty[0]}.")
    known = tuple(classes) if classes else tuple(f"class {k}" for k in range(1 + max(_whole(labels, path))))
    _check_labels(labels, names, known, path)
    images = decode_all(zip(names, cells, strict=True), size, str(path))
    return LabelledImages(images, torch.tensor(labels), names, known, str(path))


def _whole(labels: Sequence[object], path: Path) -> list[int]:
    if not labels:
        raise DataError(f"{path}: no images found.")
    return [label if isinstance(label, int) else -1 for label in labels]


def _check_labels(labels: Sequence[object], names: Sequence[str], classes: Sequence[str], path: Path) -> None:
    for label, name in zip(labels, names, strict=True):
        if not isinstance(label, int) or not 0 <= label < len(classes):
            raise DataError(
                f"{path}: image {name} has label {label}; accepted are whole numbers "
                f"0 to {len(classes) - 1} ({classes[0]} .. {classes[-1]})."
            )


def _from_folder(path: Path, size: int, classes: Sequence[str] | None, limit: int | None) -> LabelledImages:
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not folders:
        raise DataError(
            f"{path} has no class folders: give a folder with one sub-folder of images per class, "
            "such as cat/ and dog/."
        )
    known = tuple(classes) if classes else tuple(folder.name for folder in folders)
    strangers = [folder.name for folder in folders if folder.name not in known]
    if strangers:
        raise DataError(
            f"{path}: the folders {', '.join(strangers[:5])} are no classes of this model; "
            f"accepted are {', '.join(known)}."
        )
    files = [
        (file, known.index(folder.name))
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(f"{path}: the class folders hold no images ({', '.join(sorted(_SUFFIXES))}).")
    files = files[:limit]
    names = tuple(file.relative_to(path).as_posix() for file, _ in files)
    pairs = ((name, file) for name, (file, _) in zip(names, files, strict=True))
    labels = torch.tensor([label for _, label in files])
    return LabelledImages(decode_all(pairs, size, str(path)), labels, names, known, str(path))

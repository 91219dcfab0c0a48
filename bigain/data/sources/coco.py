"""COCO 2017 in its official layout."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigain.data.decode import reason_of
from bigain.data.sources.base import ImageSource
from bigain.data.sources.flat import FlatSource
from bigain.data.sources.layout import name_classes, require
from bigain.errors import DataError

__all__ = ["CocoSource"]

_KIND = "COCO 2017"
_HOME = "https://cocodataset.org/#download"
_SPLITS = ("val2017", "train2017")


class CocoSource(ImageSource):
    """Photographs with the set of categories that is annotated in each.

    The images are `val2017/*.jpg`, the categories in `annotations/instances_val2017.json`.
    Their numbers, 1 to 90 with gaps, become labels 0 to 79 in the same order. A crowd (`iscrowd`) is an annotation
    like any other: its category is in the picture. Images without annotations have no right answer and are left out;
    `left_out` is how many.

    Args:
        path: The folder in which `annotations` and the split's images are.
        split: `val2017` or `train2017`.
        classes: Other names for the categories, in their order.

    Raises:
        DataError: A part is missing or damaged, or no image has annotations.

    Source:
        Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014; the layout is that of `val2017.zip` and
        `annotations_trainval2017.zip`.
    """

    def __init__(self, path: Path, split: str = "val2017", classes: Sequence[str] | None = None) -> None:
        self.source, self.path = str(path), path / split
        require(_KIND, self.path, f"it is in {split}.zip, at {_HOME}")
        table = path / "annotations" / f"instances_{split}.json"
        require(_KIND, table, f"it is in annotations_trainval2017.zip, at {_HOME}")
        files, own, labels_of = _read_table(table)
        self.classes, number = name_classes(_KIND, path, own, classes)
        labelled = sorted((file, labels_of[image]) for image, file in files.items() if image in labels_of)
        if not labelled:
            raise DataError(f"{_KIND}: {table} annotates none of its {len(files)} images.")
        self.left_out = len(files) - len(labelled)
        self.names = tuple(file for file, _ in labelled)
        self.labels = tuple(tuple(sorted(number[label] for label in labels)) for _, labels in labelled)

    @classmethod
    def every_image(cls, path: Path, split: str = "val2017") -> FlatSource:
        """Open all images of a split, also those without annotations, and without their labels.

        Raises:
            DataError: The images are missing.
        """
        require(_KIND, path / split, f"it is in {split}.zip, at {_HOME}")
        return FlatSource(path / split, ())

    @staticmethod
    def is_at(path: Path) -> bool:
        """Say whether the layout, or a part of it, is in a folder."""
        return any(
            (path / split).is_dir() or (path / "annotations" / f"instances_{split}.json").is_file() for split in _SPLITS
        )

    def read(self, row: int) -> bytes:
        return (self.path / self.names[row]).read_bytes()

    def files(self) -> list[Path]:
        return [self.path / name for name in self.names]


def _read_table(table: Path) -> tuple[dict[int, str], list[str], Mapping[int, list[int]]]:
    """Return the file of each image, the categories' names, and the labels of each image that has any."""
    try:
        with table.open(encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file)
        categories = sorted((int(item["id"]), str(item["name"])) for item in content["categories"])
        number = {key: label for label, (key, _) in enumerate(categories)}
        files = {int(item["id"]): str(item["file_name"]) for item in content["images"]}
        labels_of: dict[int, set[int]] = {}
        for item in content["annotations"]:
            labels_of.setdefault(int(item["image_id"]), set()).add(number[int(item["category_id"])])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{_KIND}: {table} cannot be read: {reason_of(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{_KIND}: {table} is no table of instances: {type(error).__name__} {error}.") from error
    return files, [name for _, name in categories], {image: sorted(labels) for image, labels in labels_of.items()}

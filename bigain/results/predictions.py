"""What a classifier predicted."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigain.errors import DataError
from bigain.results.errors import Errors

__all__ = ["Predictions"]

_TABLE, _ERRORS, _MANIFEST = "predictions.csv", "errors.safetensors", "manifest.txt"

_BETWEEN = " | "
"""Separates the labels of one image."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of one method on named images.

    Args:
        names: N names of images.
        labels: The labels of each image; a prediction is right if it is one of them.
        predicted: int64, `[N]`, the predicted class of each image.
        errors: The errors behind them; their images are numbered as here.
        classes: Class names in label order.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    predicted: Tensor
    errors: Errors
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def right(self) -> Tensor:
        """Which images are predicted as one of their labels: bool, `[N]`."""
        pairs = zip(self.predicted.tolist(), self.labels, strict=True)
        return torch.tensor([predicted in labels for predicted, labels in pairs], dtype=torch.bool)

    def ranks(self) -> Tensor:
        """Rank the classes of each image: by the stage of pruning that they survived, then by mean error.

        Returns:
            int64 `[N, K]`, 0 for the best; classes without any evaluation come last, in label order.
        """
        count, classes = len(self), len(self.classes)
        means = self.errors.mean(count, classes).nan_to_num(torch.inf)
        place = self.errors.image.long() * classes + self.errors.label.long()
        # A class that survived a stage was evaluated at more timesteps.
        evaluations = torch.bincount(place, minlength=count * classes).reshape(count, classes)
        by_error = means.argsort(dim=1, stable=True)
        by_stage = evaluations.gather(1, by_error).argsort(dim=1, descending=True, stable=True)
        order = by_error.gather(1, by_stage)
        return torch.empty_like(order).scatter_(1, order, torch.arange(classes).expand(count, -1).contiguous())

    def save(self, folder: Path) -> None:
        """Write three files into a folder.

        `predictions.csv` has a row for each image, `manifest.txt` the images' names, one a line, `errors.safetensors`
        the errors.
        """
        _write_table(folder / _TABLE, self)
        (folder / _MANIFEST).write_text("".join(f"{name}\n" for name in self.names), encoding="utf-8")
        tensors = {**self.errors.tensors(), "predicted": self.predicted}
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / _ERRORS)

    @classmethod
    def load(cls, folder: Path) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            DataError: A file is missing or damaged, or the files are not of one run.
        """
        names, labels, classes = _read_table(folder / _TABLE)
        path = folder / _ERRORS
        try:
            tensors = load_file(path)
            predicted, errors = tensors["predicted"], Errors.from_tensors(tensors)
        except KeyError as error:
            raise DataError(f"{path} lacks {error}: it holds no predictions.") from error
        except (SafetensorError, OSError, DataError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        if len(predicted) != len(names):
            raise DataError(f"{path} has {len(predicted)} predictions, {folder / _TABLE} {len(names)} images.")
        return cls(names, labels, predicted, errors, classes)


def _write_table(path: Path, predictions: Predictions) -> None:
    classes, means = predictions.classes, predictions.errors.mean(len(predictions), len(predictions.classes))
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "prediction", "correct", *(f"error {name}" for name in classes)])
        for name, labels, found, errors in zip(
            predictions.names, predictions.labels, predictions.predicted.tolist(), means, strict=True
        ):
            truth = _BETWEEN.join(classes[label] for label in labels)
            written = ("" if math.isnan(error) else f"{error:.6g}" for error in errors.tolist())
            rows.writerow([name, truth, classes[found], int(found in labels), *written])


def _read_table(path: Path) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Return names, labels and class names."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        classes = tuple(name.removeprefix("error ") for name in head[4:])
        number = {name: label for label, name in enumerate(classes)}
        labels = tuple(tuple(number[name] for name in row[1].split(_BETWEEN) if name) for row in rows)
        return tuple(row[0] for row in rows), labels, classes
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path} is no table of predictions: {type(error).__name__} {error}.") from error

"""Which classes are taken for which."""

import csv
import math
from pathlib import Path

import torch
from torch import Tensor

from bigain.metrics.base import ClassificationMetric
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

__all__ = ["Confusion", "confusion_matrix"]

_NOTE = (
    "The largest share of one class's images that is taken for one other class; confusion.csv says which, and counts "
    "every pair that occurs."
)


def confusion_matrix(predictions: Predictions) -> Tensor:
    """Count the images of each pair of label and predicted class: int64, `[K, K]`, a row for each label.

    With several labels, an image whose predicted class is one of them counts once, for that
    class; any other counts for each of its labels. Images without labels are left out.
    """
    classes = len(predictions.classes)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for answer, labels in zip(predictions.predicted.tolist(), predictions.labels, strict=True):
        for label in (answer,) if answer in labels else labels:
            counts[label, answer] += 1
    return counts


class Confusion(ClassificationMetric):
    """The worst confusion of one class with another, and `confusion.csv` with all of them.

    The file has a row for each pair of label and prediction that occurs, by label, those of most
    images first.
    """

    def score(self, predictions: Predictions) -> Score:
        counts = confusion_matrix(predictions)
        images = counts.sum(dim=1)
        shares = counts.fill_diagonal_(0)[images > 0] / images[images > 0, None]
        value = float(shares.max()) if len(shares) else math.nan
        return Score("worst_confusion", value, label="worst confusion", unit="share", better="lower", note=_NOTE)

    def write(self, predictions: Predictions, folder: Path) -> None:
        counts, names = confusion_matrix(predictions), predictions.classes
        with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["label", "prediction", "images", "share of label"])
            for label, own in enumerate(counts):
                for answer in own.argsort(descending=True, stable=True).tolist():
                    if own[answer]:
                        rows.writerow([names[label], names[answer], int(own[answer]), f"{own[answer] / own.sum():.6g}"])

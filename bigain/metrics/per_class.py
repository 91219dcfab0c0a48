"""Accuracy of each class."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from bigain.metrics.base import ClassificationMetric
from bigain.metrics.intervals import Share, share
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

__all__ = ["ClassAccuracy", "PerClass", "per_class"]

_NOTE = (
    "Mean over classes of the top-1 accuracy of their images, each class counted alike; an image with several labels "
    "counts for each of them. Each class is in per_class.csv."
)


@dataclass(frozen=True)
class ClassAccuracy:
    """How well the images of one class are predicted.

    Args:
        name: The class.
        images: Images that have it as a label.
        right: Those of them whose predicted class is among their labels.
        predicted: Images, of any class, that are predicted as it.
        accuracy: `right / images` with Wilson's interval; NaN for a class without images.
    """

    name: str
    images: int
    right: int
    predicted: int
    accuracy: Share


def per_class(predictions: Predictions) -> list[ClassAccuracy]:
    """Return the accuracy of every class, in label order.

    With several labels, an image counts for each of its labels, and as right for all of them
    if the predicted class is one.
    """
    found = predictions.predicted.tolist()
    rows = list(zip(found, predictions.labels, strict=True))
    images, right, predicted = ([0] * len(predictions.classes) for _ in range(3))
    for answer, labels in rows:
        predicted[answer] += 1
        for label in labels:
            images[label] += 1
            right[label] += answer in labels
    columns = zip(predictions.classes, images, right, predicted, strict=True)
    return [ClassAccuracy(name, n, hits, answers, share(hits, n)) for name, n, hits, answers in columns]


class PerClass(ClassificationMetric):
    """The mean of the classes' accuracies, and `per_class.csv` with each of them.

    Classes of few images count as much as others; those without any are left out of the mean.
    """

    def score(self, predictions: Predictions) -> Score:
        values = [one.accuracy.value for one in per_class(predictions) if one.images]
        value = sum(values) / len(values) if values else math.nan
        return Score("per_class", value, label="per class", unit="share", better="higher", note=_NOTE)

    def write(self, predictions: Predictions, folder: Path) -> None:
        with (folder / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["class", "images", "right", "predicted", "accuracy", "low", "high"])
            for one in per_class(predictions):
                ends = (one.accuracy.value, one.accuracy.low, one.accuracy.high)
                shares = ("" if math.isnan(end) else f"{end:.6g}" for end in ends)
                rows.writerow([one.name, one.images, one.right, one.predicted, *shares])

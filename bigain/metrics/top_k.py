"""Top-k accuracy."""

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.metrics.base import ClassificationMetric, check_same_images
from bigain.metrics.intervals import paired_difference, share
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

__all__ = ["TopK"]

_NOTE = "Classes rank by the stage of pruning that they survived, then by error; with Wilson's interval."


class TopK(ClassificationMetric):
    """The share of images of which a label is among the k classes that rank best.

    Staged pruning leaves some classes with fewer evaluations: classes rank by the stage that
    they survived, and by their error within it.

    Args:
        k: How many classes count.

    Raises:
        SettingError: `k` is below 1.
    """

    def __init__(self, k: int = 5) -> None:
        if k < 1:
            raise SettingError(f"k is the number of classes that count, 1 or more; got {k}.")
        self.k = k

    def score(self, predictions: Predictions) -> Score:
        right = self._right(predictions)
        found = share(int(right.sum()), len(right))
        return Score(f"top{self.k}", found.value, found.low, found.high, f"top-{self.k}", "share", "higher", _NOTE)

    def compare(self, first: Predictions, second: Predictions) -> Score:
        check_same_images(first, second)
        found = paired_difference(self._right(first), self._right(second))
        name, label = f"top{self.k}_difference", f"paired, top-{self.k}"
        note = "Difference on the same images, and noise where there is any, with Tango's score interval."
        return Score(name, found.value, found.low, found.high, label, "points", "higher", note)

    def _right(self, predictions: Predictions) -> Tensor:
        best = (predictions.ranks() < self.k).tolist()
        pairs = zip(best, predictions.labels, strict=True)
        return torch.tensor([any(row[label] for label in labels) for row, labels in pairs], dtype=torch.bool)

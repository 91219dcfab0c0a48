"""Label-ranking average precision, for images with several labels."""

import math

import torch
from scipy import stats
from torch import Tensor

from bigain.metrics.base import ClassificationMetric, check_same_images
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

__all__ = ["LabelRankingPrecision"]

_NOTE = (
    "Mean over images of the average precision of the ranking of all classes; classes rank by the stage of pruning "
    "that they survived, then by error. With Student's interval."
)


class LabelRankingPrecision(ClassificationMetric):
    """How far up an image's labels stand in the ranking of all classes.

    The average precision of an image is the mean, over its labels, of the share of labels
    among the classes that rank at least as high. The paper calls the mean over images mAP.
    Staged pruning leaves some classes with fewer evaluations: classes rank by the stage that
    they survived, and by their error within it. Images without labels are left out.

    References:
        BiGain, section 5.1 (COCO-2017).
    """

    def score(self, predictions: Predictions) -> Score:
        return _mean(_precisions(predictions), "label_ranking", "mAP", "share", _NOTE)

    def compare(self, first: Predictions, second: Predictions) -> Score:
        check_same_images(first, second)
        apart = _precisions(first) - _precisions(second)
        note = "Mean difference on the same images with the same noise, with Student's interval."
        return _mean(apart, "label_ranking_difference", "paired, mAP", "points", note)


def _mean(values: Tensor, name: str, label: str, unit: str, note: str) -> Score:
    count = len(values)
    value = float(values.mean()) if count else math.nan
    if count < 2:
        return Score(name, value, None, None, label, unit, "higher", note)  # type: ignore[arg-type] # one of two
    half = float(stats.t.ppf(0.975, count - 1)) * float(values.std()) / math.sqrt(count)
    return Score(name, value, value - half, value + half, label, unit, "higher", note)  # type: ignore[arg-type]


def _precisions(predictions: Predictions) -> Tensor:
    """Return the average precision of each image that has labels, float64."""
    from torchmetrics.functional.classification import multilabel_ranking_average_precision

    ranks, classes = predictions.ranks(), len(predictions.classes)
    found = []
    for row, labels in zip(ranks, predictions.labels, strict=True):
        if labels:
            target = torch.zeros(1, classes, dtype=torch.int64)
            target[0, list(labels)] = 1
            # Preferences between 0 and 1, which torchmetrics takes as they are.
            preference = 1 - row[None].double() / classes
            found.append(float(multilabel_ranking_average_precision(preference, target, classes)))
    return torch.tensor(found, dtype=torch.float64)

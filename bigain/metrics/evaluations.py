"""Network evaluations per image."""

import math

from bigain.metrics.base import ClassificationMetric
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

__all__ = ["Evaluations"]

_NOTE = "Network evaluations that classifying an image takes, on average."


class Evaluations(ClassificationMetric):
    """How many (class, timestep) pairs the classifier evaluated for an image, on average."""

    def score(self, predictions: Predictions) -> Score:
        count = len(predictions)
        value = len(predictions.errors) / count if count else math.nan
        return Score("evaluations_per_image", value, label="evals", unit="count", better="lower", note=_NOTE)

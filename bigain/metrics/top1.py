"""Top-1 accuracy."""

from bigain.metrics.base import ClassificationMetric, check_same_images
from bigain.metrics.intervals import paired_difference, share
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

__all__ = ["Top1"]


class Top1(ClassificationMetric):
    """The share of images whose predicted class is among their labels.

    With one label an image it is the accuracy, with several the top-1 precision.
    Its interval is Wilson's; that of the difference of two methods is Tango's for pairs.
    """

    def score(self, predictions: Predictions) -> Score:
        right = predictions.right
        found = share(int(right.sum()), len(right))
        return Score("top1", found.value, found.low, found.high, "top-1", "share", "higher", "With Wilson's interval.")

    def compare(self, first: Predictions, second: Predictions) -> Score:
        check_same_images(first, second)
        found = paired_difference(first.right, second.right)
        note = "Difference on the same images, and noise where there is any, with Tango's score interval."
        return Score("top1_difference", found.value, found.low, found.high, "paired", "points", "higher", note)

"""Metrics of predictions: right answers, and that a new one touches one file."""

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from bigain.errors import SettingError
from bigain.metrics.base import ClassificationMetric
from bigain.metrics.evaluations import Evaluations
from bigain.metrics.intervals import paired_difference, share
from bigain.metrics.top1 import Top1
from bigain.results.errors import Errors
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

CLASSES = ("cat", "dog", "cow")


def predictions(predicted, labels, names=None):
    """Predictions whose image i was evaluated i + 1 times."""
    dense = torch.full((len(predicted), 3, 4), torch.nan)
    for image in range(len(predicted)):
        dense[image].view(-1)[: image + 1] = 1.0
    names = names or tuple(f"{image}.png" for image in range(len(predicted)))
    errors = Errors.of(dense, torch.arange(len(predicted)))
    return Predictions(names, tuple(labels), torch.tensor(predicted), errors, CLASSES)


def test_top1_is_torchmetrics_accuracy_with_wilsons_interval():
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randint(3, (40,), generator=generator) for _ in range(2))
    score = Top1().score(predictions(predicted.tolist(), [(label,) for label in target.tolist()]))
    assert score.value == pytest.approx(float(multiclass_accuracy(predicted, target, 3, average="micro")))
    expected = share(int((predicted == target).sum()), 40)
    assert (score.low, score.high) == (expected.low, expected.high)
    assert (score.name, score.unit, score.better) == ("top1", "share", "higher")


def test_one_of_several_labels_is_right_and_none_is_wrong():
    score = Top1().score(predictions([0, 1, 2, 2], [(0, 2), (0, 2), (2,), ()]))
    assert score.value == 0.5


def test_methods_compare_in_pairs_on_the_same_images():
    first = predictions([0, 1, 2, 1], [(0,), (1,), (2,), (0,)])
    second = predictions([0, 0, 0, 0], [(0,), (1,), (2,), (0,)])
    found = Top1().compare(first, second)
    expected = paired_difference(torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([1, 0, 0, 1]).bool())
    assert (found.value, found.low, found.high) == (0.25, expected.low, expected.high)
    assert found.unit == "points"
    other = predictions([0, 0], [(0,), (1,)])
    with pytest.raises(SettingError, match=r"the same images in the same order; one has 4 images .*the other 2"):
        Top1().compare(first, other)


def test_evaluations_are_counted_an_image():
    found = predictions([0, 0, 0], [(0,), (0,), (0,)])
    assert Evaluations().score(found).value == 2
    assert Evaluations().compare(found, found) is None


def test_no_images_have_no_figures():
    nothing = predictions([], [])
    for metric in (Top1(), Evaluations()):
        assert math.isnan(metric.score(nothing).value)


class DogShare(ClassificationMetric):
    """A metric of somebody else: what share is called a dog."""

    def score(self, predictions):
        dogs = predictions.predicted == predictions.classes.index("dog")
        return Score("dogs", float(dogs.double().mean()), label="dogs", unit="share")


def test_a_metric_is_one_class():
    found = predictions([0, 1, 1, 2], [(0,)] * 4)
    metrics = [Top1(), Evaluations(), DogShare()]
    assert {score.name: score.value for score in (metric.score(found) for metric in metrics)} == {
        "top1": 0.25,
        "evaluations_per_image": 2.5,
        "dogs": 0.5,
    }
    assert DogShare().compare(found, found) is None

"""Metrics of predictions: right answers, and that a new one touches one file."""

import csv
import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from bigain.errors import SettingError
from bigain.metrics.base import ClassificationMetric
from bigain.metrics.confusion import Confusion, confusion_matrix
from bigain.metrics.evaluations import Evaluations
from bigain.metrics.intervals import paired_difference, share
from bigain.metrics.label_ranking import LabelRankingPrecision
from bigain.metrics.per_class import PerClass, per_class
from bigain.metrics.top1 import Top1
from bigain.metrics.top_k import TopK
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


NAMES = tuple("abcdef")


def pruned(seed=0, images=12, labels=None):
    """Predictions after two stages: six classes at two timesteps, and the best three of them at two more."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.full((images, 6, 4), torch.nan)
    dense[:, :, [0, 2]] = torch.rand(images, 6, 2, generator=generator)
    for image in range(images):
        alive = dense[image, :, [0, 2]].mean(dim=1).argsort()[:3]
        dense[image, alive[:, None], torch.tensor([1, 3])] = torch.rand(3, 2, generator=generator)
    order = [slow_order(dense[image]) for image in range(images)]
    labels = labels or [tuple(torch.randperm(6, generator=generator)[: 1 + i % 3].tolist()) for i in range(images)]
    errors = Errors.of(dense, torch.arange(images))
    names = tuple(f"{image}.png" for image in range(images))
    return Predictions(names, tuple(labels), torch.tensor([one[0] for one in order]), errors, NAMES), order


def slow_order(errors):
    """Classes from best to worst: those that survived before those that did not, each by mean error."""

    def place(label):
        found = [float(error) for error in errors[label] if not error.isnan()]
        return -len(found), sum(found) / len(found)

    return sorted(range(len(errors)), key=place)


def test_classes_rank_by_the_stage_they_survived_and_then_by_error():
    found, order = pruned()
    ranks = found.ranks()
    for row, expected in zip(ranks, order, strict=True):
        assert [expected[rank] for rank in row.tolist()] == list(range(6))
    # An order by error alone would be another one somewhere: fewer evaluations may happen to be small.
    means = found.errors.mean(12, 6)
    assert any(means[i].argsort().tolist() != order[i] for i in range(12))


@pytest.mark.parametrize("k", [1, 2, 6])
def test_top_k_counts_a_label_among_the_best_k(k):
    found, order = pruned()
    right = [any(label in one[:k] for label in labels) for one, labels in zip(order, found.labels, strict=True)]
    score = TopK(k).score(found)
    assert (score.name, score.value) == (f"top{k}", pytest.approx(sum(right) / 12))
    if k == 1:
        assert score.value == Top1().score(found).value
    other, _ = pruned(seed=1, labels=list(found.labels))
    apart = TopK(k).compare(found, other)
    assert apart.value == pytest.approx(score.value - TopK(k).score(other).value)
    with pytest.raises(SettingError, match="k is the number of classes"):
        TopK(0)


def test_label_ranking_precision_is_that_of_a_plain_loop_over_ranks():
    found, order = pruned()
    each = []
    for one, labels in zip(order, found.labels, strict=True):
        places = [one.index(label) + 1 for label in labels]
        each.append(sum(sum(other <= place for other in places) / place for place in places) / len(places))
    score = LabelRankingPrecision().score(found)
    assert score.value == pytest.approx(sum(each) / 12, abs=1e-6)
    spread = torch.tensor(each).std().item() / math.sqrt(12)
    assert score.high - score.value == pytest.approx(2.200985 * spread, rel=1e-4)  # Student's quantile for 11
    unlabelled, _ = pruned(labels=[*found.labels[:-1], ()])
    assert LabelRankingPrecision().score(unlabelled).value == pytest.approx(sum(each[:-1]) / 11, abs=1e-6)
    apart = LabelRankingPrecision().compare(found, pruned(seed=1, labels=list(found.labels))[0])
    assert apart.low < apart.value < apart.high


def guesses(labels, seed=0, classes=3):
    """Predictions at random for given labels."""
    predicted = torch.randint(classes, (len(labels),), generator=torch.Generator().manual_seed(seed))
    return predictions(predicted.tolist(), labels)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_accuracy_of_each_class_is_torchmetrics_with_wilsons_interval(tmp_path):
    target = torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))
    found = guesses([(label,) for label in target.tolist()])
    expected = multiclass_accuracy(found.predicted, target, 3, average=None)
    score = PerClass().score(found)
    assert score.value == pytest.approx(float(expected.mean()))
    assert score.value != pytest.approx(Top1().score(found).value)
    PerClass().write(found, tmp_path)
    rows = rows_of(tmp_path / "per_class.csv")
    assert [row["class"] for row in rows] == list(CLASSES)
    for label, row in enumerate(rows):
        images, right = int((target == label).sum()), int(((target == label) & (found.predicted == label)).sum())
        assert [int(row[name]) for name in ("images", "right", "predicted")] == [
            images, right, int((found.predicted == label).sum())
        ]  # fmt: skip
        assert float(row["accuracy"]) == pytest.approx(float(expected[label]), rel=1e-5)
        assert float(row["low"]) == pytest.approx(share(right, images).low, rel=1e-5)


def test_a_class_without_images_has_no_accuracy(tmp_path):
    found = predictions([0, 2, 2], [(0,), (0,), (2,)])
    assert PerClass().score(found).value == pytest.approx((0.5 + 1) / 2)
    PerClass().write(found, tmp_path)
    assert rows_of(tmp_path / "per_class.csv")[1] == {
        "class": "dog", "images": "0", "right": "0", "predicted": "0", "accuracy": "", "low": "", "high": ""
    }  # fmt: skip
    assert math.isnan(PerClass().score(predictions([], [])).value)
    assert math.isnan(Confusion().score(predictions([], [])).value)


def test_an_image_with_several_labels_counts_for_each():
    found = predictions([0, 1, 2, 2], [(0, 2), (0, 2), (2,), ()])
    table = {one.name: (one.images, one.right, one.predicted) for one in per_class(found)}
    assert table == {"cat": (2, 1, 1), "dog": (0, 0, 1), "cow": (3, 2, 2)}
    # The first and third are right and count once, the second for both of its labels, the last for none.
    assert confusion_matrix(found).tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]


def test_confusion_is_torchmetrics_and_the_file_has_the_pairs_that_occur(tmp_path):
    target = torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))
    found = guesses([(label,) for label in target.tolist()])
    expected = multiclass_confusion_matrix(found.predicted, target, 3)
    assert torch.equal(confusion_matrix(found), expected)
    shares = expected / expected.sum(dim=1, keepdim=True)
    assert Confusion().score(found).value == pytest.approx(float(shares.fill_diagonal_(0).max()))
    Confusion().write(found, tmp_path)
    pairs = {(row["label"], row["prediction"]): int(row["images"]) for row in rows_of(tmp_path / "confusion.csv")}
    named = {(CLASSES[i], CLASSES[j]): int(expected[i, j]) for i in range(3) for j in range(3)}
    assert pairs == {pair: count for pair, count in named.items() if count}
    Confusion().write(predictions([1, 1, 0], [(0,)] * 3), tmp_path)
    assert [tuple(row.values()) for row in rows_of(tmp_path / "confusion.csv")] == [
        ("cat", "dog", "2", "0.666667"), ("cat", "cat", "1", "0.333333")
    ]  # fmt: skip

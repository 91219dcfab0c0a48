"""Precision and recall of generated images."""

import pytest

from bigain.errors import SettingError
from bigain.metrics.features import EmbeddedFeatures
from bigain.metrics.precision import Precision
from bigain.metrics.recall import Recall


def slow(points, features, k):
    """The share of points within a ball around a feature that reaches to its k-th neighbour."""
    radii = [
        sorted(float((one - other).norm()) for j, other in enumerate(features) if j != i)[k - 1]
        for i, one in enumerate(features)
    ]
    inside = [any(float((p - f).norm()) <= r for f, r in zip(features, radii, strict=True)) for p in points]
    return sum(inside) / len(inside)


def test_they_are_the_shares_of_a_slow_loop(tiny_features, real, images, drawn):
    network, fake = EmbeddedFeatures(tiny_features), images(40, 1, bright=12)
    a, b = network(fake).double(), network(real[1]).double()
    for metric, expected in ((Precision, slow(a, b, 3)), (Recall, slow(b, a, 3))):
        score = metric(network, real[0]).score(drawn(*fake.split(11)))
        assert score.value == pytest.approx(expected)
        if metric is Precision:
            assert 0 < score.low < score.value < score.high < 1
        else:
            assert (score.low, score.high) == (None, None)
        assert (score.unit, score.better) == ("share", "higher")
        assert score.label == f"{metric.__name__} (embedded CIFAR-10 features)"


def test_the_real_images_have_both_in_full_and_far_ones_have_neither(tiny_features, real, images, drawn):
    network = EmbeddedFeatures(tiny_features)
    precision, recall = Precision(network, real[0]), Recall(network, real[0])
    assert precision.score(drawn(real[1])).value == recall.score(drawn(real[1])).value == 1
    white = images(10, 0) * 0 + 255
    assert precision.score(drawn(white)).value == recall.score(drawn(white)).value == 0
    # A few of the real ones, over and over, are all real and cover little.
    few = real[1][:4].repeat(5, 1, 1, 1)
    assert precision.score(drawn(few)).value == 1
    assert recall.score(drawn(few)).value < 0.2


def test_too_few_images_are_refused(tiny_features, real, images, drawn):
    network = EmbeddedFeatures(tiny_features)
    with pytest.raises(SettingError, match="Precision needs 4 images or more, generated; got 3"):
        Precision(network, real[0]).score(drawn(images(3, 0)))
    with pytest.raises(SettingError, match="Recall needs 61 images or more in the reference"):
        Recall(network, real[0], neighbors=60).identity()
    with pytest.raises(SettingError, match="neighbors is 1 or more; got 0"):
        Precision(neighbors=0)
    assert Precision(network, real[0]).identity() != Recall(network, real[0]).identity()

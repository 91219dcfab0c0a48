"""The kernel distance: its formula, its subsets, its name."""

import pytest
import torch

from bigain.errors import SettingError
from bigain.metrics.features import EmbeddedFeatures
from bigain.metrics.kernel_distance import KernelDistance


def slow(a, b):
    """The unbiased estimate with k(x, y) = (x.y / D + 1)^3, pair by pair."""

    def mean(first, second, same):
        pairs = [
            (float(x @ y) / len(x) + 1) ** 3
            for i, x in enumerate(first)
            for j, y in enumerate(second)
            if not (same and i == j)
        ]
        return sum(pairs) / len(pairs)

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def test_of_whole_sets_it_is_the_formula(tiny_features, real, images, drawn):
    network, fake = EmbeddedFeatures(tiny_features), images(60, 1, bright=40)
    metric = KernelDistance(network, real[0], subsets=2, subset_size=60)
    score = metric.score(drawn(*fake.split(13)))
    expected = slow(network(fake).double(), network(real[1]).double())
    assert score.value == pytest.approx(expected, rel=1e-4)
    assert (score.name, score.better) == ("kernel_distance", "lower")
    assert score.label == "Kernel distance (embedded CIFAR-10 features)"
    assert "60 generated images against 60 real ones. Mean of 2 subsets of 60 images" in score.note


def test_subsets_are_seeded_and_leave_other_draws_alone(tiny_features, real, images, drawn):
    network, fake = EmbeddedFeatures(tiny_features), images(50, 1, bright=40)

    def value(seed):
        return KernelDistance(network, real[0], 5, 20, seed).score(drawn(fake)).value

    torch.manual_seed(3)
    first = value(0)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), after)
    assert value(0) == first
    assert value(1) != first


def test_only_inceptions_is_called_kid(tiny_features, real, images, drawn):
    network = EmbeddedFeatures(tiny_features)
    network.name = "Inception"
    score = KernelDistance(network, real[0], 1, 10).score(drawn(images(20, 1)))
    assert (score.name, score.label) == ("kid", "KID")


def test_too_few_images_and_impossible_subsets_are_refused(tiny_features, real):
    metric = KernelDistance(EmbeddedFeatures(tiny_features), real[0])
    with pytest.raises(SettingError, match=r"1,000 images or more \(subset_size\) in the reference; .* has 60"):
        metric.identity()
    with pytest.raises(SettingError, match="two images or more; got subsets=1, subset_size=1"):
        KernelDistance(subsets=1, subset_size=1)


def test_its_settings_are_its_identity(tiny_features, real):
    network = EmbeddedFeatures(tiny_features)
    one, other = (KernelDistance(network, real[0], 2, 10, seed).identity() for seed in (0, 1))
    assert one != other
    assert one["metric"] == "kernel_distance"

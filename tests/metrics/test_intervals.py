import math

import pytest
import torch

from bigain.metrics.intervals import paired_difference, share


def test_wilson_interval_in_closed_form():
    successes, trials, z = 41, 50, 1.959963984540054
    p = successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    found = share(successes, trials)
    assert (found.value, found.low, found.high) == pytest.approx((p, centre - half, centre + half))


def test_no_trials_have_no_share():
    assert math.isnan(share(0, 0).value)


def test_paired_difference_uses_the_pairs():
    first = torch.tensor([1, 1, 1, 0, 1, 0], dtype=torch.bool)
    second = torch.tensor([1, 0, 1, 0, 0, 0], dtype=torch.bool)
    found = paired_difference(first, second)
    differences = [0, 1, 0, 0, 1, 0]
    mean = sum(differences) / 6
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 5 / 6)
    assert found.value == pytest.approx(mean)
    assert found.high - found.value == pytest.approx(1.959964 * spread, rel=1e-5)


def test_equal_answers_have_no_difference_and_no_width():
    same = torch.tensor([True, False, True])
    found = paired_difference(same, same)
    assert (found.value, found.low, found.high) == (0, 0, 0)

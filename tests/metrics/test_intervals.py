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


def answers(won, lost, count):
    """Two methods' answers: `won` images that only the first got right, `lost` that only the second did."""
    first = torch.arange(count) < won
    return first, (torch.arange(count) >= won) & (torch.arange(count) < won + lost)


def standard_errors(won, lost, count, difference):
    """The score at a supposed difference, its shares found by trying all of them on a fine grid."""
    share_lost = torch.linspace(max(0, -difference), (1 - difference) / 2, 2_000_001, dtype=torch.float64)
    share_won = share_lost + difference
    rest = (1 - share_won - share_lost).clamp_min(0)
    likely = torch.xlogy(torch.tensor(float(won)), share_won) + torch.xlogy(torch.tensor(float(lost)), share_lost)
    best = int((likely + torch.xlogy(torch.tensor(float(count - won - lost)), rest)).argmax())
    error = math.sqrt((float(share_won[best] + share_lost[best]) - difference**2) / count)
    return ((won - lost) / count - difference) / error


@pytest.mark.parametrize(("won", "lost", "count"), [(2, 0, 6), (12, 2, 50), (0, 9, 40), (5, 5, 12), (30, 51, 2000)])
def test_at_both_ends_the_difference_is_just_within_chance(won, lost, count):
    found = paired_difference(*answers(won, lost, count))
    assert found.value == pytest.approx((won - lost) / count)
    assert -1 <= found.low < found.value < found.high <= 1
    assert standard_errors(won, lost, count, found.low) == pytest.approx(1.959964, abs=2e-3)
    assert standard_errors(won, lost, count, found.high) == pytest.approx(-1.959964, abs=2e-3)


def test_on_many_images_it_is_the_normal_approximation():
    first, second = answers(370, 395, 5000)
    differences = first.double() - second.double()
    half = 1.959964 * float(differences.std()) / math.sqrt(5000)
    found = paired_difference(first, second)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=5e-5)


@pytest.mark.parametrize("count", [1, 4, 1000])
def test_equal_answers_differ_by_no_more_than_so_many_images_can_tell(count):
    """The normal approximation has no width here: a few images that did not change would prove that nothing does."""
    found = paired_difference(*answers(0, 0, count))
    limit = 1.959964**2 / (count + 1.959964**2)  # Wilson's upper end of none in so many
    assert (found.value, found.low, found.high) == pytest.approx((0, -limit, limit), abs=1e-6)


def test_the_two_methods_can_change_places():
    first, second = answers(12, 2, 50)
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low))


@pytest.mark.parametrize("count", [1, 8])
def test_a_method_that_alone_is_always_right(count):
    found, other = paired_difference(*answers(count, 0, count)), paired_difference(*answers(0, count, count))
    assert found.value == found.high == -other.value == -other.low == 1
    assert -1 < found.low < 1
    assert other.high == pytest.approx(-found.low)


def test_no_images_have_no_difference():
    assert math.isnan(paired_difference(*answers(0, 0, 0)).value)

"""McNemar's exact test against its closed form."""

from math import comb

import pytest

from bigain.metrics.mcnemar import mcnemar


@pytest.mark.parametrize(("won", "lost"), [(0, 1), (1, 1), (3, 0), (12, 2), (2, 12), (30, 51), (7, 8)])
def test_it_is_twice_the_smaller_tail_of_fair_coins(won, lost):
    tail = sum(comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    assert mcnemar(won, lost) == pytest.approx(min(1, 2 * tail))


def test_nothing_apart_is_no_difference():
    assert mcnemar(0, 0) == 1

"""Intervals for shares and for paired differences."""

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from torch import Tensor

__all__ = ["Share", "paired_difference", "share"]


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval, all between -1 and 1."""

    value: float
    low: float
    high: float


def share(successes: int, trials: int) -> Share:
    """Return a share with Wilson's 95 % interval.

    References:
        Probable inference, the law of succession, and statistical inference (Wilson, 1927).
    """
    if not trials:
        return Share(math.nan, math.nan, math.nan)
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Share(successes / trials, float(interval.low), float(interval.high))


def paired_difference(first: Tensor, second: Tensor) -> Share:
    """Return the mean of `first - second` over the same images with its 95 % score interval.

    Methods run on the same images with the same noise, so that the paired interval is
    narrower than the two separate ones suggest. Unlike the normal approximation, it has a
    width even where both got the same images right.

    Args:
        first: bool, `[N]`: which images a method got right.
        second: bool, `[N]`: the same for another.

    References:
        Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design (Tango, 1998).
    """
    count = len(first)
    if not count:
        return Share(math.nan, math.nan, math.nan)
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    value, quantile = (won - lost) / count, float(norm.ppf(0.975))
    ends = []
    for side, end in ((1, -1.0), (-1, 1.0)):

        def beyond(difference: float, side: int = side) -> float:
            return _score(won, lost, count, difference) - side * quantile

        # The score may stay within the quantile up to -1 or 1: the interval then ends there.
        reaches = side * beyond(end) <= 0
        ends.append(end if reaches else float(brentq(beyond, end, value, xtol=1e-9)))
    return Share(value, ends[0], ends[1])


def _score(won: int, lost: int, count: int, difference: float) -> float:
    """Return how many standard errors the observed difference lies above a supposed one.

    The standard error is that of the most likely shares with the supposed difference.
    """
    linear = (2 * count - won + lost) * difference - won - lost
    constant = -lost * difference * (1 - difference)
    share_lost = (math.sqrt(max(linear**2 - 8 * count * constant, 0)) - linear) / (4 * count)
    variance = count * (2 * share_lost + difference * (1 - difference))
    gap = won - lost - count * difference
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

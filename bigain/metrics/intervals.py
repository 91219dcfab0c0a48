"""Intervals for shares and for paired differences."""

import math
from dataclasses import dataclass

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
    """Return the mean of `first - second` over the same images with its 95 % interval.

    Methods are run on the same images with the same noise, so that the paired
    interval is narrower than the two separate ones suggest.

    Args:
        first: bool, `[N]`: which images a method got right.
        second: bool, `[N]`: the same for another.
    """
    difference = first.double() - second.double()
    count = len(difference)
    if count < 2:
        return Share(float(difference.mean()), math.nan, math.nan)
    half = float(norm.ppf(0.975)) * float(difference.std()) / math.sqrt(count)
    mean = float(difference.mean())
    return Share(mean, mean - half, mean + half)

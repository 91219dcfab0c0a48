"""How long passes take on a device: timed in turn, and compared in pairs."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

__all__ = ["Ratio", "host_clock", "interleaved", "quartiles", "ratio"]


@dataclass(frozen=True)
class Ratio:
    """How long one method takes, as a share of another's time.

    Args:
        median: Median of the pairs' ratios.
        low: Lower end of its 95 % interval; `None` where there are too few pairs for one.
        high: Upper end, likewise.
        pairs: Passes that were compared.
    """

    median: float
    low: float | None
    high: float | None
    pairs: int


def interleaved(
    passes: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, list[float]]:
    """Time several methods in turn, so that a machine that slows down affects all of them.

    Args:
        passes: One pass of each method, by name; they run in this order, once in every round.
        repeats: Timed rounds.
        warmup: Rounds before, not timed.
        device: Where they run.
        clock: Runs a pass and returns its seconds. Default: the host's clock, each pass from an
            idle device to an idle device.

    Returns:
        Seconds of each timed pass, by method; equal indices are of one round.
    """
    timed = partial(host_clock, device=torch.device(device)) if clock is None else clock
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(warmup + repeats):
        for name, evaluate in passes.items():
            elapsed = timed(evaluate)
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def ratio(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Compare two methods that were timed in turn.

    The interval has no distribution behind it: for the median of n values, the k-th from either
    end bound it with a probability of 1 - 2 P(X < k), X being binomial (n, 1/2). With fewer than
    six values no k gives 95 %.

    Args:
        times: Times of a method, in any unit.
        baseline: Times of the baseline in the same rounds.

    Raises:
        ValueError: No times, or different numbers of times.

    References:
        Practical Nonparametric Statistics (Conover, 1999), section 3.2.
    """
    if not times:
        raise ValueError("A ratio of times takes one pair or more; got none.")
    ratios = sorted(one / other for one, other in zip(times, baseline, strict=True))
    count = len(ratios)
    rank = _interval_rank(count)
    low, high = (ratios[rank - 1], ratios[count - rank]) if rank else (None, None)
    return Ratio(statistics.median(ratios), low, high, count)


def _interval_rank(count: int, level: float = 0.95) -> int:
    """Return which order statistic from either end bounds the median; 0 where none does."""
    rank, below = 0, 0.0
    while 2 * (below := below + math.comb(count, rank) / 2**count) <= 1 - level:
        rank += 1
    return rank


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile; for a single value, that value three times."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def host_clock(action: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one pass by the host's clock, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start

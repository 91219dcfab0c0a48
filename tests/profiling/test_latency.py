"""Timing in turn, and the ratio of two methods with its interval."""

import itertools
import random
import statistics
import time

import pytest
import torch

from bigain.profiling.latency import Ratio, interleaved, quartiles, ratio

CPU = torch.device("cpu")


def test_methods_run_in_turn_after_the_warm_up():
    order = []
    passes = {name: lambda name=name: order.append(name) for name in ("none", "a", "b")}
    seconds = interleaved(passes, repeats=3, warmup=1, device=CPU)
    assert order == ["none", "a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"none": 3, "a": 3, "b": 3}


def test_a_machine_that_slows_down_leaves_the_ratio():
    """Each round takes longer than the one before; the second method always twice the first."""
    turns = itertools.count()
    passes = {name: lambda: (1 + (turn := next(turns)) // 2) * (1 + turn % 2) for name in "ab"}
    seconds = interleaved(passes, repeats=8, warmup=1, clock=lambda run: float(run()))
    assert max(seconds["a"]) > 3 * min(seconds["a"])
    assert ratio(seconds["b"], seconds["a"]) == Ratio(2.0, 2.0, 2.0, 8)


def test_the_host_s_clock_times_what_takes_long():
    seconds = interleaved({"a": lambda: time.sleep(0.05)}, repeats=2, device=CPU)
    assert min(seconds["a"]) >= 0.05


def test_a_clock_of_ones_own_times_each_pass_and_the_warm_up_is_left_out():
    """By a clock that counts, the second method takes three times the first in every round."""
    seconds = interleaved({"a": lambda: 1.0, "b": lambda: 3.0}, repeats=4, warmup=2, clock=lambda run: run())
    assert seconds == {"a": [1.0] * 4, "b": [3.0] * 4}
    assert ratio(seconds["b"], seconds["a"]) == Ratio(3.0, None, None, 4)
    readings = iter([9.0, 9.0, *range(1, 7)])
    assert interleaved({"": next}, repeats=6, warmup=2, clock=lambda run: run(readings)) == {"": [1, 2, 3, 4, 5, 6]}


def test_quartiles_of_known_values():
    assert quartiles([5, 1, 4, 2, 3]) == (2, 3, 4)
    assert quartiles([7]) == (7, 7, 7)


def test_a_ratio_is_of_pairs():
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == Ratio(3.0, None, None, 3)


def test_fewer_than_six_pairs_have_no_interval():
    assert ratio([1.0] * 5, [2.0] * 5) == Ratio(0.5, None, None, 5)
    assert ratio([1.0] * 6, [2.0] * 6) == Ratio(0.5, 0.5, 0.5, 6)


@pytest.mark.parametrize("count", range(6, 15))
def test_the_interval_is_the_narrowest_of_95_per_cent(count):
    """Every way in which values can lie about the true median is as likely as any other: try them all."""
    values = [float(value) for value in range(1, count + 1)]
    shuffled = random.Random(0).sample(values, count)
    found = ratio(shuffled, [1.0] * count)
    rank = int(found.low)
    assert (found.low, found.median, found.high) == (values[rank - 1], statistics.median(values), values[-rank])

    def covered(rank):
        """Count where at least `rank` values lie on either side."""
        sides = (sum(signs) for signs in itertools.product((0, 1), repeat=count))
        return sum(rank <= above <= count - rank for above in sides) / 2**count

    assert covered(rank) >= 0.95 > covered(rank + 1)


def test_no_pairs_and_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="got none"):
        ratio([], [])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ratio([1.0, 2.0], [1.0])

"""From how many tokens on a method pays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bigain.benchmark.latency import LatencyTable, ratio_to
from bigain.benchmark.timed_cases import Kind
from bigain.profiling.modes import Mode

__all__ = ["Curve", "break_even", "curves_of", "in_words"]


@dataclass(frozen=True)
class Curve:
    """A row's time as a share of the time without reduction, at each size where both have times.

    Args:
        name: The row's name.
        kind: What the row is.
        tokens: Tokens of the largest attention, ascending.
        ratios: Median ratio of times at each size.
    """

    name: str
    kind: Kind
    tokens: tuple[int, ...]
    ratios: tuple[float, ...]


def curves_of(content: LatencyTable) -> dict[Mode, list[Curve]]:
    """Collect the curves of a sweep, for each mode; empty with fewer than two numbers of tokens.

    For self-attentions by themselves, a sweep has one number of channels and heads: the pair that
    is measured at most sizes.
    """
    widths = [(size.channels, size.heads) for size in content.sizes]
    usual = max(widths, key=widths.count)
    sweep = {size.tokens: size for size, width in zip(content.sizes, widths, strict=True) if width == usual}
    if len(sweep) < 2:
        return {}
    points: dict[Mode, dict[tuple[str, Kind], list[tuple[int, float]]]] = {}
    for tokens, size in sorted(sweep.items()):
        for mode, rows in size.modes.items():
            for row in rows[1:]:
                ratio = ratio_to(row, rows[0])
                if ratio is not None and row.case.kind != "part":
                    of = points.setdefault(mode, {}).setdefault((row.case.name, row.case.kind), [])
                    of.append((tokens, ratio.median))
    return {mode: [_curve(*key, found) for key, found in of.items()] for mode, of in points.items()}


def _curve(name: str, kind: Kind, points: Sequence[tuple[int, float]]) -> Curve:
    return Curve(name, kind, tuple(tokens for tokens, _ in points), tuple(ratio for _, ratio in points))


def break_even(tokens: Sequence[int], ratios: Sequence[float]) -> float | None:
    """Return the number of tokens from which on a method takes no longer than no reduction.

    Between two sizes, the ratio is interpolated linearly in the logarithm of the tokens.

    Args:
        tokens: Tokens of each size, ascending.
        ratios: Median ratio of times at each size.

    Returns:
        The last crossing of 1 from above; 0 if the method pays at every size, `None` if it does not
        at the largest.
    """
    if ratios[-1] >= 1:
        return None
    for (low, above), (high, below) in reversed([*pairwise(zip(tokens, ratios, strict=True))]):
        if above >= 1 > below:
            part = (above - 1) / (above - below)
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return 0.0


def in_words(curve: Curve) -> str:
    """Say from how many tokens on a method pays."""
    found, largest = break_even(curve.tokens, curve.ratios), f"{curve.tokens[-1]:,}"
    if found is None:
        return f"{curve.name} pays at none of the sizes up to {largest} tokens."
    if found == 0:
        return f"{curve.name} pays at every size measured, {curve.tokens[0]:,} to {largest} tokens."
    return f"{curve.name} pays from about {float(f'{found:.2g}'):,.0f} tokens on."

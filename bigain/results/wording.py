"""Numbers as people read them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bigain.results.scores import Score

__all__ = [
    "MISSING",
    "count",
    "decimal",
    "interval",
    "listed",
    "number",
    "percent",
    "points",
    "quantity",
    "ratio",
    "score_interval",
    "score_line",
    "score_value",
]

MISSING = "\N{EN DASH}"
"""Written in place of a value that does not exist."""


def number(content: Mapping[str, Any], key: str) -> float:
    """Return a number of a JSON object; NaN where it is missing, null or not a number."""
    value = content.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def decimal(value: float) -> str:
    """Write a measured number with about three significant digits."""
    if not math.isfinite(value):
        return MISSING
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    return _signed(f"{value:,.{digits}f}")


def count(value: float) -> str:
    """Write a count with thousands separated; a mean of counts keeps one decimal."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def quantity(value: float, noun: str) -> str:
    """Write a number with its noun: `1 image`, `16 images`."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def about_seconds(seconds: float) -> str:
    """Write how long something will take, as exactly as one can know it: `40 s`, `4 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(10, 10 * round(seconds / 10))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def percent(share: float, unit: bool = True) -> str:
    """Write a share as a percentage."""
    if not math.isfinite(share):
        return MISSING
    return f"{100 * share:.1f}" + ("\N{NO-BREAK SPACE}%" if unit else "")


def points(share: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    if not math.isfinite(share):
        return MISSING
    rounded = round(100 * share, 1)
    return _signed(f"{rounded:+.1f}") if rounded else "0.0"


def interval(low: str, high: str) -> str:
    """Write a range, or a single dash where an end is missing."""
    return MISSING if MISSING in (low, high) else f"{low} to {high}"


def ratio(value: float, baseline: float) -> str:
    """Write a value as a multiple of the baseline's."""
    if not (math.isfinite(value) and math.isfinite(baseline) and baseline):
        return MISSING
    return f"{value / baseline:.2f}\N{MULTIPLICATION SIGN}"


def score_value(score: Score) -> str:
    """Write a score's figure in its unit; the column's heading names the unit."""
    return _in_unit(score, score.value)


def score_interval(score: Score) -> str:
    """Write a score's interval, `72.1 to 74.5`; empty if it has none."""
    if score.low is None or score.high is None:
        return ""
    text = interval(_in_unit(score, score.low), _in_unit(score, score.high))
    return "" if text == MISSING else text


def score_line(score: Score) -> str:
    """Write a score with its interval and what is to be known beside it: `top-1 72.1 % (70.1 to 74.0). ..`."""
    unit = {"share": "\N{NO-BREAK SPACE}%", "points": " points"}.get(score.unit, "")
    interval = f" ({found})" if (found := score_interval(score)) else ""
    return f"{score.label or score.name} {score_value(score)}{unit}{interval}. {score.note}".rstrip()


def _in_unit(score: Score, value: float) -> str:
    if score.unit == "share":
        return percent(value, unit=False)
    if score.unit == "points":
        return points(value)
    if score.unit == "count":
        return count(value)
    if score.unit == "GFLOPs":
        return f"{value:,.2f}" if math.isfinite(value) else MISSING
    if score.unit == "ratio":
        return f"{value:.2f}\N{MULTIPLICATION SIGN}" if math.isfinite(value) else MISSING
    return decimal(value)


def listed(names: Sequence[str]) -> str:
    """Join names as a sentence does: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _signed(text: str) -> str:
    # The true minus is as wide as a plus and does not break at a line's end.
    return text.replace("-", "\N{MINUS SIGN}")

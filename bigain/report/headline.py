"""The one sentence that says what came out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bigain.results.wording import listed, number, points, quantity, ratio

__all__ = ["accuracy_verdict", "headline", "speed_verdict"]

_FEW = 100
"""Below so many images a difference is told with a warning, whatever its interval."""

_FEW_TIMINGS = 10
"""Of fewer timed passes quartiles say little: methods are timed one after another, and a busy host drifts meanwhile."""


def headline(content: Mapping[str, Any]) -> str:
    """Say in one sentence what the figures support, and no more.

    Accuracy differs where the 95 % interval of the paired difference excludes
    zero; speed differs where the quartiles of the two timings do not overlap.

    Args:
        content: What `comparison.json` holds.
    """
    baseline, *others = content["methods"]
    images = quantity(number(baseline, "images"), "image")
    if not others:
        return f"Only {baseline['name']} was run, on {images}: there is nothing to compare it with."
    device = str(content.get("provenance", {}).get("device", "this device")).split(" (")[0]
    accuracy = _accuracy(baseline, others)
    speed = _speed(baseline, others)
    return f"On {images}, {accuracy}; timed on {device}, {speed}."


def accuracy_verdict(method: Mapping[str, Any]) -> str:
    """Judge a method's paired difference: `lower`, `higher`, `few`, `noise` or `unknown`."""
    low, high = number(method, "difference_low"), number(method, "difference_high")
    if not (math.isfinite(low) and math.isfinite(high)):
        return "unknown"
    if low <= 0 <= high:
        return "noise"
    if not number(method, "images") >= _FEW:
        return "few"
    return "lower" if high < 0 else "higher"


def speed_verdict(method: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """Judge a method's time: `faster`, `slower`, `same`, `few` or `unknown`."""
    low, high = number(method, "ms_low"), number(method, "ms_high")
    base_low, base_high = number(baseline, "ms_low"), number(baseline, "ms_high")
    if not all(math.isfinite(value) for value in (low, high, base_low, base_high)):
        return "unknown"
    if number(method, "timings") < _FEW_TIMINGS:  # runs of before that was kept have enough
        return "few"
    if high < base_low:
        return "faster"
    return "slower" if low > base_high else "same"


def _accuracy(baseline: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    groups = _grouped(others, [accuracy_verdict(method) for method in others])
    base = baseline["name"]
    clauses = []
    for verdict, word in (("lower", "less"), ("higher", "more")):
        if found := groups.get(verdict):
            verb = "is" if len(found) == 1 else "are"
            clauses.append(f"{_with_points(found)} {verb} {word} accurate than {base}, beyond what chance explains")
    if found := groups.get("few"):
        clauses.append(
            f"{_with_points(found)} {_verb(found, 'scores', 'score')} differently from {base}, but so few "
            "images prove little"
        )
    if found := groups.get("noise"):
        whom = "between the methods" if len(found) == len(others) > 1 else f"between {_names(found)} and {base}"
        few = number(baseline, "images") < _FEW
        why = "so few images cannot tell them apart" if few else "the 95 % interval includes zero"
        clauses.append(f"the difference in accuracy {whom} is within the noise ({why})")
    if found := groups.get("unknown"):
        clauses.append(f"the accuracy of {_names(found)} could not be compared with that of {base}")
    return ", while ".join(clauses) if len(clauses) == 2 else "; ".join(clauses)


def _speed(baseline: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    groups = _grouped(others, [speed_verdict(method, baseline) for method in others])
    base, time = baseline["name"], number(baseline, "ms")
    clauses = []
    for verdict in ("faster", "slower"):
        if found := groups.get(verdict):
            told = [f"{method['name']} ({ratio(number(method, 'ms'), time)} the time)" for method in found]
            clauses.append(f"{listed(told)} {_verb(found, 'is', 'are')} {verdict} than {base}")
    if found := groups.get("same"):
        clauses.append(
            f"{_names(found)} {_verb(found, 'is', 'are')} neither faster nor slower than {base} by more "
            "than the timings scatter"
        )
    if found := groups.get("few"):
        clauses.append(f"too few passes were timed ({number(found[0], 'timings'):.0f} of each) to tell speeds apart")
    if found := groups.get("unknown"):
        clauses.append(f"the speed of {_names(found)} was not measured")
    return " and ".join(clauses) if len(clauses) == 2 else ", ".join(clauses)


def _grouped(methods: Sequence[Mapping[str, Any]], verdicts: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for method, verdict in zip(methods, verdicts, strict=True):
        groups.setdefault(verdict, []).append(method)
    return groups


def _names(methods: Sequence[Mapping[str, Any]]) -> str:
    return listed([str(method["name"]) for method in methods])


def _verb(methods: Sequence[Mapping[str, Any]], one: str, many: str) -> str:
    return one if len(methods) == 1 else many


def _with_points(methods: Sequence[Mapping[str, Any]]) -> str:
    return listed([f"{m['name']} ({points(number(m, 'difference'))} points)" for m in methods])

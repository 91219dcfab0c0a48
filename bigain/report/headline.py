"""The one sentence that sums up a comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigain.results.scores import Score, scores_of
from bigain.results.wording import listed, number, points, quantity, score_value

__all__ = ["accuracy_verdict", "headline", "speed_verdict"]

_FEW = 100
"""With fewer images a difference is stated with a warning, whatever its interval."""


def headline(content: Mapping[str, Any]) -> str:
    """Say in one sentence what the figures support, and no more.

    Accuracy differs if the 95 % interval of the paired difference excludes zero; speed
    differs if the interval of the ratio of times excludes one.

    Args:
        content: The content of `comparison.json`.
    """
    baseline, *others = content["rows"]
    images = quantity(number(baseline, "images"), "image")
    if not others:
        return f"Only {baseline['name']} was run, on {images}: there is nothing to compare it with."
    device = str(content.get("provenance", {}).get("device", "this device")).split(" (")[0]
    accuracy = _accuracy(baseline, others)
    speed = _speed(baseline, others)
    return f"On {images}, {accuracy}; timed on {device}, {speed}."


def accuracy_verdict(row: Mapping[str, Any]) -> str:
    """Judge a row's paired difference: `lower`, `higher`, `few`, `noise` or `unknown`."""
    found = _difference(row)
    if found is None or found.low is None or found.high is None:
        return "unknown"
    if found.low <= 0 <= found.high:
        return "noise"
    if not number(row, "images") >= _FEW:
        return "few"
    return "lower" if found.high < 0 else "higher"


def speed_verdict(row: Mapping[str, Any]) -> str:
    """Judge a row's time: `faster`, `slower`, `same`, `few` or `unknown`."""
    found = scores_of(row).get("time")
    if found is None:
        return "unknown"
    if found.low is None or found.high is None:
        return "few"
    if found.high < 1:
        return "faster"
    return "slower" if found.low > 1 else "same"


def _difference(row: Mapping[str, Any]) -> Score | None:
    """Return a row's first difference to the baseline."""
    return next((score for score in scores_of(row).values() if score.unit == "points"), None)


def _accuracy(baseline: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    groups = _grouped(others, [accuracy_verdict(row) for row in others])
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
    groups = _grouped(others, [speed_verdict(row) for row in others])
    base = baseline["name"]
    clauses = []
    for verdict in ("faster", "slower"):
        if found := groups.get(verdict):
            named = [f"{row['name']} ({score_value(scores_of(row)['time'])} the time)" for row in found]
            clauses.append(f"{listed(named)} {_verb(found, 'is', 'are')} {verdict} than {base}")
    if found := groups.get("same"):
        clauses.append(
            f"{_names(found)} {_verb(found, 'is', 'are')} neither faster nor slower than {base} by more "
            "than the timings scatter"
        )
    if found := groups.get("few"):
        clauses.append("too few passes were timed to tell speeds apart")
    if found := groups.get("unknown"):
        clauses.append(f"the speed of {_names(found)} was not measured")
    return " and ".join(clauses) if len(clauses) == 2 else ", ".join(clauses)


def _grouped(rows: Sequence[Mapping[str, Any]], verdicts: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        groups.setdefault(verdict, []).append(row)
    return groups


def _names(rows: Sequence[Mapping[str, Any]]) -> str:
    return listed([str(row["name"]) for row in rows])


def _verb(rows: Sequence[Mapping[str, Any]], one: str, many: str) -> str:
    return one if len(rows) == 1 else many


def _with_points(rows: Sequence[Mapping[str, Any]]) -> str:
    return listed([f"{row['name']} ({_points(row)} points)" for row in rows])


def _points(row: Mapping[str, Any]) -> str:
    found = _difference(row)
    return points(found.value) if found else ""

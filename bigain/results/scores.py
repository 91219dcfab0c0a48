"""A figure with its interval."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from bigain.errors import DataError

__all__ = ["Score", "Unit", "columns_of", "distinct", "scores_of"]

Unit = Literal["share", "points", "number", "GFLOPs", "ms", "ratio", "count"]


@dataclass(frozen=True)
class Score:
    """One figure of a result, as tables, the page and the store take it.

    Args:
        name: Its key in results, such as `top1`.
        value: The figure; NaN if there is none.
        low: Lower end of its 95 % interval, if it has one.
        high: Upper end.
        label: Its name for readers, such as `top-1`.
        unit: `share` lies between 0 and 1 and is shown in per cent; `points` is the
            difference of two shares, between -1 and 1, shown in percentage points.
        better: Which direction is better; empty if neither is.
        note: One sentence on how to read it.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    unit: Unit = "number"
    better: Literal["higher", "lower", ""] = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a mapping for JSON, without NaN and empty fields."""
        content = {key: value for key, value in asdict(self).items() if value not in (None, "")}
        return {key: None if _is_nan(value) else value for key, value in content.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Score":
        """Read what `to_json` returned.

        Raises:
            DataError: A key is unknown or missing.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(content) - known)
        missing = sorted({"name", "value"} - set(content))
        if unknown or missing:
            given = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
            raise DataError(f"A score has the keys {', '.join(sorted(known))}; {given}.")
        value = content["value"]
        return cls(**{**content, "value": math.nan if value is None else float(value)})


def distinct(scores: Sequence[Score]) -> list[Score]:
    """Number the names of scores that have the same, such as distances of several features: by name they are read."""
    seen, found = Counter[str](), list[Score]()
    for score in scores:
        seen[score.name] += 1
        number = seen[score.name]
        found.append(score if number == 1 else replace(score, name=f"{score.name}_{number}"))
    return found


def scores_of(row: Mapping[str, Any]) -> dict[str, Score]:
    """Return the scores of a row of a result, `{"scores": [..]}`, by name."""
    return {score["name"]: Score.from_json(score) for score in row["scores"]}


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[Score]:
    """Return a score for each column of a table: the first of its name, in the order of the fullest row."""
    found: dict[str, Score] = {}
    for row in sorted(rows, key=lambda row: -len(row["scores"])):
        for name, score in scores_of(row).items():
            found.setdefault(name, score)
    return list(found.values())


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)

"""The rows of the table, as strings to show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigain.results.scores import Score, columns_of, scores_of
from bigain.results.wording import MISSING, count, number, quantity, ratio, score_interval, score_value

__all__ = ["Cell", "Row", "Table", "comparison_table", "short_label"]

_ENOUGH_SAMPLES = 2048
"""With fewer samples, the covariance of Inception's 2048 features does not have full rank."""

_UNITS = {
    "share": "%",
    "points": "points",
    "ms": "per evaluation",
    "ratio": "multiple of the first row's",
    "GFLOPs": "per evaluation",
}

_RELATIVE = ("number", "GFLOPs", "ms", "count")
"""Units of figures that are also shown as multiples of the first row's."""


@dataclass(frozen=True)
class Cell:
    """A figure, and smaller lines below it."""

    value: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One method."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A comparison as a table.

    Args:
        label: The run, its images and its device.
        columns: Heading and unit of each column after the method's name.
        rows: One per method, in order.
        notes: How to read the figures.
        warnings: Why not to rely on them.
        date: When the run finished.
        command: The command that made it.
    """

    label: str
    columns: tuple[Cell, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    date: str
    command: str


def comparison_table(content: Mapping[str, Any], run: str) -> Table:
    """Lay out the content of `comparison.json`; its scores are the columns.

    Args:
        content: The file's content.
        run: Name of the run: `This run`, `Shipped run`.
    """
    rows, origin = content["rows"], content.get("provenance", {})
    columns = columns_of(rows)
    first = scores_of(rows[0])
    shown = tuple(
        Row(row["name"], (*(_cell(scores_of(row), first, c, row is rows[0]) for c in columns), _tokens(row["sites"])))
        for row in rows
    )
    heads = (*(_heading(column) for column in columns), Cell("Tokens", ("before → after",)))
    label = f"{run}: {quantity(number(rows[0], 'images'), 'image')} on {origin.get('device', 'an unknown device')}"
    date = str(origin.get("finished", "")).split("T")[0]
    command = str(origin.get("command", ""))
    return Table(label, heads, shown, _notes(columns, rows[0]["name"]), _warnings(rows, columns), date, command)


def short_label(score: Score) -> str:
    """Return a column's name: the label without its parenthesis, which is in a note."""
    text = (score.label or score.name).split(" (")[0]
    return text[:1].upper() + text[1:]


def _heading(column: Score) -> Cell:
    interval = ["95 % interval"] if column.low is not None else []
    better = [f"{column.better} is better"] if column.unit == "number" and column.better else []
    return Cell(short_label(column), (", ".join([*filter(None, [_UNITS.get(column.unit, "")]), *interval, *better]),))


def _cell(scores: Mapping[str, Score], first: Mapping[str, Score], column: Score, same: bool) -> Cell:
    score, base = scores.get(column.name), first.get(column.name)
    if score is None:
        return Cell(MISSING, ("baseline",) if same else ())
    multiple = ratio(score.value, base.value) if base and not same and score.unit in _RELATIVE else MISSING
    details = [score_interval(score), "" if multiple == MISSING else multiple]
    return Cell(score_value(score), tuple(filter(None, details)))


def _tokens(sites: Sequence[Mapping[str, Any]]) -> Cell:
    if not sites:
        return Cell(MISSING)
    lengths = list(dict.fromkeys((site["before"], site["after"]) for site in sites))
    text = "; ".join(f"{count(before)} → {count(after)}" for before, after in lengths)
    unchanged = all(before == after for before, after in lengths)
    return Cell(text, (("unchanged" if unchanged else f"at {quantity(len(sites), 'site')}"),))


def _notes(columns: Sequence[Score], first: str) -> tuple[str, ...]:
    notes = [f"{short_label(column)}: {column.note}" for column in columns if column.note]
    for column in columns:
        if column.unit == "points":
            notes.append(
                f"{short_label(column)} differences are to {first}; where the interval includes zero, the difference "
                "may be chance."
            )
        if " (" in column.label:
            notes.append(
                f"{column.label} is of other features than Inception's: it is not FID and cannot be compared with "
                "published figures."
            )
    return (*notes, f"Multiples (\N{MULTIPLICATION SIGN}) are relative to {first}.")


def _warnings(rows: Sequence[Mapping[str, Any]], columns: Sequence[Score]) -> tuple[str, ...]:
    fewest = min(number(row, "generated") for row in rows)
    distances = [column for column in columns if column.unit == "number" and column.better == "lower"]
    if not fewest < _ENOUGH_SAMPLES or not distances:
        return ()
    return (
        f"The {distances[0].label.split(' (')[0]} rests on {quantity(fewest, 'generated image')} per method, fewer "
        f"than {_ENOUGH_SAMPLES:,}: its size is governed by the sample size, and even the order of the methods may be "
        "chance.",
    )

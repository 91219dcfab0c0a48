"""The rows of the table, as strings to show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigain.results.wording import MISSING, count, decimal, interval, number, percent, points, quantity, ratio

__all__ = ["Cell", "Row", "Table", "comparison_table"]

_INCEPTION = "FID"

_ENOUGH_SAMPLES = 2048
"""Below so many samples the covariance of Inception's 2048 features has not even full rank."""


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
        label: Which run this is: images, device.
        columns: Heading and unit of each column after the method's name.
        rows: One per method, in order.
        notes: What must be known to read the figures.
        warnings: What keeps them from being relied on.
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
    """Lay out what `comparison.json` holds.

    Args:
        content: The file's content.
        run: What to call this run: `This run`, `Full run`.
    """
    methods, origin = content["methods"], content.get("provenance", {})
    baseline = methods[0]
    distance = _distance_name(baseline)
    columns = (
        Cell("Top-1", ("95 % interval",)),
        Cell("Paired difference", ("points, 95 % interval",)),
        Cell(distance, ("lower is better",)),
        Cell("GFLOPs", ("per evaluation",)),
        Cell("Time", ("ms per evaluation, quartiles",)),
        Cell("Evaluations", ("per classified image",)),
        Cell("Tokens", ("before → after",)),
    )
    rows = tuple(Row(method["name"], _cells(method, baseline)) for method in methods)
    images = quantity(number(baseline, "images"), "image")
    label = f"{run}: {images} on {origin.get('device', 'an unknown device')}"
    date = str(origin.get("finished", "")).split("T")[0]
    command = str(origin.get("command", ""))
    return Table(label, columns, rows, _notes(baseline, distance), _warnings(methods, distance), date, command)


def _cells(method: Mapping[str, Any], baseline: Mapping[str, Any]) -> tuple[Cell, ...]:
    low, high = number(method, "top1_low"), number(method, "top1_high")
    accuracy = interval(percent(low, unit=False), percent(high, unit=False))
    difference = interval(points(number(method, "difference_low")), points(number(method, "difference_high")))
    quartiles = interval(decimal(number(method, "ms_low")), decimal(number(method, "ms_high")))
    same = method is baseline
    return (
        Cell(percent(number(method, "top1")), _known(accuracy)),
        Cell(MISSING, ("baseline",)) if same else Cell(points(number(method, "difference")), _known(difference)),
        Cell(decimal(number(method, "frechet")), () if same else _relative(method, baseline, "frechet")),
        Cell(decimal(number(method, "gflops")), () if same else _relative(method, baseline, "gflops")),
        Cell(
            decimal(number(method, "ms")),
            (*_known(quartiles), *(() if same else _relative(method, baseline, "ms"))),
        ),
        Cell(
            count(number(method, "evaluations_per_image")),
            () if same else _relative(method, baseline, "evaluations_per_image"),
        ),
        _tokens(method.get("sites") or []),
    )


def _known(text: str) -> tuple[str, ...]:
    return () if text == MISSING else (text,)


def _relative(method: Mapping[str, Any], baseline: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return _known(ratio(number(method, key), number(baseline, key)))


def _tokens(sites: list[Mapping[str, Any]]) -> Cell:
    if not sites:
        return Cell(MISSING)
    lengths = list(dict.fromkeys((site["before"], site["after"]) for site in sites))
    told = "; ".join(f"{count(before)} → {count(after)}" for before, after in lengths)
    kept = all(before == after for before, after in lengths)
    return Cell(told, (("unchanged" if kept else f"at {quantity(len(sites), 'site')}"),))


def _distance_name(method: Mapping[str, Any]) -> str:
    return _INCEPTION if method.get("features") == _INCEPTION else "Fréchet distance"


def _notes(baseline: Mapping[str, Any], distance: str) -> tuple[str, ...]:
    first = baseline["name"]
    if distance == _INCEPTION:
        features = "FID is the Fréchet distance between Inception features of generated and of real images."
    else:
        features = (
            f"The distance is the {baseline.get('features') or 'Fréchet distance'}. It is not FID, a name kept for "
            "Inception's features, and cannot be compared with published FIDs."
        )
    rows = number(baseline, "rows")
    batch = f" in batches of {quantity(rows, 'row')}" if rows == rows else ""
    return (
        f"Top-1 has Wilson's interval. The paired difference is to {first}, on the same images with the same noise, "
        "with Tango's score interval; where its interval includes zero, the difference may be chance.",
        features,
        f"Time is the median per network evaluation of one row{batch}; multiples (\N{MULTIPLICATION SIGN}) are "
        f"relative to {first}.",
    )


def _warnings(methods: list[Mapping[str, Any]], distance: str) -> tuple[str, ...]:
    fewest = min(number(method, "generated") for method in methods)
    if not fewest < _ENOUGH_SAMPLES:
        return ()
    return (
        f"The {distance} rests on "
        f"{quantity(fewest, 'generated image')} per method, fewer than {_ENOUGH_SAMPLES:,}: its size is governed by "
        "the sample size, and even the order of the methods may be chance.",
    )

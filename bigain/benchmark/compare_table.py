"""Put the scores of a comparison into one table.

The table knows no metric by name: its columns are the scores that its rows have.
"""

import csv
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bigain.benchmark.comparison import Comparison, Row
from bigain.benchmark.cost import timing_scores
from bigain.metrics.base import ClassificationMetric
from bigain.results.predictions import Predictions
from bigain.results.scores import Score, columns_of, scores_of
from bigain.results.store import read_json, read_result
from bigain.results.wording import MISSING, score_interval, score_value
from bigain.tasks.result_task import RESULT_FILE
from bigain.tasks.vit_classification import speed_score

__all__ = ["assemble", "terminal_table", "write_csv"]

_WIDTH = 80
"""Characters of a line in a terminal."""

_NAME_WIDTH = 20
"""Characters of a method's name before it is folded."""

_SETTINGS = (
    *("trials", "keeps", "noises", "timestep_weights", "loss", "noise_seed", "source", "subset", "data", "weights"),
    *("precision", "backbone", "network"),
)
"""Settings of the first row's classification that the comparison shows, where it has them."""

_ORIGIN = ("finished", "device", "git_revision", "python", "versions")


def assemble(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """Read every row's results and return the content of `comparison.json`.

    Args:
        comparison: What was run.
        folder: Has a folder for each row under `rows/`, and `timing.json`.

    Raises:
        DataError: A file is missing or damaged.
    """
    rows = comparison.table_rows
    metrics = comparison.classification_metrics or ()
    timing = read_json(folder / "timing.json")
    baseline = Predictions.load(folder / "rows" / rows[0].name / "classification")
    described = []
    for row in rows:
        place = folder / "rows" / row.name
        seconds = timing["seconds"]
        compared = [] if row is rows[0] else _differences(metrics, place, baseline)
        first = None if row is rows[0] else seconds[rows[0].name]
        times = timing_scores(seconds[row.name], first, timing["rows"])
        if comparison.classifier is not None:
            times.append(speed_score(timing["rows"] / statistics.median(seconds[row.name]), timing["rows"]))
        described.append(_described(comparison, row, place, compared, times))
    return {"title": comparison.title, "baseline": rows[0].name, "rows": described, **_facts(comparison, folder)}


def _differences(metrics: Sequence[ClassificationMetric], place: Path, baseline: Predictions) -> list[Score]:
    own = Predictions.load(place / "classification")
    found = [metric.compare(own, baseline) for metric in metrics]
    return [score for score in found if score is not None]


def _described(
    comparison: Comparison, row: Row, place: Path, differences: Sequence[Score], times: Sequence[Score]
) -> dict[str, Any]:
    classified = read_result(place / "classification" / RESULT_FILE)
    generated = None if comparison.classifier else read_result(place / "generation" / RESULT_FILE)
    operations = read_json(place / "cost.json")["operations"] / 1e9
    taken = {score.name for score in times}  # in turn, which tells more than each row's own time
    own = [Score.from_json(score) for score in classified["scores"] if score["name"] not in taken]
    drawn = [Score.from_json(score) for score in generated["scores"]] if generated else []
    cost = Score("gflops", operations, label="GFLOPs", unit="GFLOPs", better="lower")
    scores = [*own[:1], *differences, *drawn, cost, *times, *own[1:]]
    return {
        "name": row.name,
        "method": repr(row.method),
        "placement": str(comparison.placement_of(row)),
        "seed": comparison.seed_of(row),
        "images": classified["images"],
        **({"generated": generated["generated"]} if generated else {}),
        "sites": classified["sites"],
        "scores": [score.to_json() for score in scores],
    }


def _facts(comparison: Comparison, folder: Path) -> dict[str, Any]:
    place = folder / "rows" / comparison.table_rows[0].name
    first = read_result(place / "classification" / RESULT_FILE)
    return {
        "classes": list(comparison.data.test_set.classes),
        "settings": {
            **{key: first["settings"][key] for key in _SETTINGS if key in first["settings"]},
            **({} if comparison.classifier else _generation_facts(comparison, place)),
            "compile": comparison.compile,
        },
        "provenance": {"command": first["command"], **{key: first[key] for key in _ORIGIN}},
    }


def _generation_facts(comparison: Comparison, place: Path) -> dict[str, Any]:
    generation = read_result(place / "generation" / RESULT_FILE)["settings"]
    keys = ("steps", "guidance", "scheduler", "first_seed")
    return {**{key: generation[key] for key in keys}, "share_plans": comparison.share_plans}


def write_csv(path: Path, content: Mapping[str, Any]) -> None:
    """Write a line for each row, with shares (not per cent) and times of one network evaluation."""
    columns = columns_of(content["rows"])
    names = [
        name
        for column in columns
        for name in (column.name, *([f"{column.name}_low", f"{column.name}_high"] if column.low is not None else []))
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, ["name", "method", "images", "generated", *names], extrasaction="ignore")
        lines.writeheader()
        for row in content["rows"]:
            scores = scores_of(row).values()
            values = {score.name: score.value for score in scores}
            ends = {f"{s.name}_{end}": getattr(s, end) for s in scores for end in ("low", "high")}
            lines.writerow({**row, **values, **ends})


def terminal_table(content: Mapping[str, Any]) -> Table:
    """Lay the table out for a terminal: no figure is cut, and what finds no room is left to the page."""
    columns = columns_of(content["rows"])
    if any(column.unit == "ratio" for column in columns):
        # Ratios and milliseconds do not fit 80 columns together; the file and the page have both.
        columns = [column for column in columns if column.unit != "ms"]
    table, console = _table(content, columns, intervals=True), Console(width=1000)
    while console.measure(table).maximum > _WIDTH and len(columns) > 1:
        table = _table(content, columns, intervals=False)
        columns = columns[:-1]
    return table


def _table(content: Mapping[str, Any], columns: Sequence[Score], intervals: bool) -> Table:
    rows = content["rows"]
    table = Table(
        title=content["title"],
        caption=_caption(content, columns, intervals),
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("method", overflow="fold", max_width=_NAME_WIDTH)
    for column in columns:
        # Two lines for each row keep the table within 80 columns without cutting a figure.
        table.add_column("\n".join(_heading(column)), justify="right", no_wrap=True)
    for row in rows:
        scores = scores_of(row)
        table.add_row(row["name"], *(_cell(scores.get(column.name), intervals) for column in columns))
    return table


def _heading(column: Score) -> list[str]:
    unit = {"share": ", %", "points": ", points"}.get(column.unit, "")
    # The caption has the label with its parenthesis.
    return textwrap.wrap((column.label or column.name).split(" (")[0] + unit, 12, break_long_words=False)


def _cell(score: Score | None, intervals: bool) -> str:
    if score is None:
        return MISSING
    interval = score_interval(score) if intervals else ""
    return score_value(score) + (f"\n{interval}" if interval else "")


def _caption(content: Mapping[str, Any], columns: Sequence[Score], intervals: bool) -> str:
    row, settings = content["rows"][0], content["settings"]
    distances = [column.label for column in columns if " (" in column.label]
    what = f"{row['images']} images"
    if "trials" in settings:
        what += f", {settings['trials'][-1]} timesteps"
    if "steps" in settings:
        what += f"; {row['generated']} generated, {settings['steps']} steps, guidance {settings['guidance']:g}"
    return (
        f"{what}. "
        + "".join(f"{label}. " for label in distances)
        + "".join(f"{column.label}: {column.note} " for column in columns if column.unit == "share" and column.note)
        + f"{'Intervals: 95 %' if intervals else 'Intervals and further columns are on the page'}. "
        f"{content['provenance']['device']}, {settings['precision']}"
        f"{', compiled' if settings['compile'] else ''}."
    )

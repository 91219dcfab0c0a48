"""Put the scores of a comparison into one table.

The table knows no metric by name: its columns are the scores that its rows have.
"""

import csv
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bigain.benchmark.comparison import Comparison, Row
from bigain.benchmark.cost import timing_scores
from bigain.metrics.base import ClassificationMetric
from bigain.results.predictions import Predictions
from bigain.results.scores import Score, columns_of, scores_of
from bigain.results.store import read_json, read_result
from bigain.results.wording import MISSING, score_interval, score_value
from bigain.tasks.classification import default_metrics
from bigain.tasks.evaluation import RESULT_FILE

__all__ = ["assemble", "terminal_table", "write_csv"]

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
    metrics = comparison.classification_metrics
    metrics = default_metrics() if metrics is None else metrics
    timing = read_json(folder / "timing.json")
    baseline = Predictions.load(folder / "rows" / rows[0].name / "classification")
    described = []
    for row in rows:
        place = folder / "rows" / row.name
        seconds = timing["seconds"]
        compared = [] if row is rows[0] else _differences(metrics, place, baseline)
        first = None if row is rows[0] else seconds[rows[0].name]
        times = timing_scores(seconds[row.name], first, timing["rows"])
        described.append(_described(comparison, row, place, compared, times))
    return {"title": comparison.title, "baseline": rows[0].name, "rows": described, **_facts(comparison, folder)}


def _differences(metrics: Sequence[ClassificationMetric], place: Path, baseline: Predictions) -> list[Score]:
    own = Predictions.load(place / "classification")
    found = [metric.compare(own, baseline) for metric in metrics]
    return [score for score in found if score is not None]


def _described(
    comparison: Comparison, row: Row, place: Path, differences: Sequence[Score], times: Sequence[Score]
) -> dict[str, Any]:
    classified, generated = (read_result(place / task / RESULT_FILE) for task in ("classification", "generation"))
    operations = read_json(place / "cost.json")["operations"] / 1e9
    first, *rest = [Score.from_json(score) for score in classified["scores"]]
    drawn = [Score.from_json(score) for score in generated["scores"]]
    cost = Score("gflops", operations, label="GFLOPs", unit="GFLOPs", better="lower")
    scores = [first, *differences, *drawn, cost, *times, *rest]
    return {
        "name": row.name,
        "method": repr(row.method),
        "placement": str(comparison.placement_of(row)),
        "seed": comparison.seed_of(row),
        "images": classified["images"],
        "generated": generated["generated"],
        "sites": classified["sites"],
        "scores": [score.to_json() for score in scores],
    }


def _facts(comparison: Comparison, folder: Path) -> dict[str, Any]:
    place = folder / "rows" / comparison.table_rows[0].name
    first = read_result(place / "classification" / RESULT_FILE)
    generation = read_result(place / "generation" / RESULT_FILE)["settings"]
    keys = ("trials", "keeps", "loss", "noise_seed", "source", "subset", "data", "weights", "precision")
    return {
        "classes": list(comparison.data.test_set.classes),
        "settings": {
            **{key: first["settings"][key] for key in keys},
            **{key: first["settings"][key] for key in ("noises", "timestep_weights") if key in first["settings"]},
            **{key: generation[key] for key in ("steps", "guidance", "scheduler", "first_seed")},
            "compile": comparison.compile,
            "share_plans": comparison.share_plans,
        },
        "provenance": {"command": first["command"], **{key: first[key] for key in _ORIGIN}},
    }


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
    """Lay the table out for a terminal."""
    rows = content["rows"]
    columns = columns_of(rows)
    if any(column.unit == "ratio" for column in columns):
        # Ratios and milliseconds do not fit 80 columns together; the file and the page have both.
        columns = [column for column in columns if column.unit != "ms"]
    table = Table(
        title=content["title"],
        caption=_caption(content, columns),
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("method", overflow="fold")
    for column in columns:
        # Two lines for each row keep the table within 80 columns without cutting a figure.
        table.add_column("\n".join(_heading(column)), justify="right", no_wrap=True)
    for row in rows:
        scores = scores_of(row)
        table.add_row(row["name"], *(_cell(scores.get(column.name)) for column in columns))
    return table


def _heading(column: Score) -> list[str]:
    unit = {"share": ", %", "points": ", points"}.get(column.unit, "")
    # The caption has the label with its parenthesis.
    return textwrap.wrap((column.label or column.name).split(" (")[0] + unit, 12, break_long_words=False)


def _cell(score: Score | None) -> str:
    if score is None:
        return MISSING
    interval = score_interval(score)
    return score_value(score) + (f"\n{interval}" if interval else "")


def _caption(content: Mapping[str, Any], columns: Sequence[Score]) -> str:
    row, settings = content["rows"][0], content["settings"]
    distances = [column.label for column in columns if " (" in column.label]
    return (
        f"{row['images']} images, {settings['trials'][-1]} timesteps; {row['generated']} generated, "
        f"{settings['steps']} steps, guidance {settings['guidance']:g}. "
        + "".join(f"Distance: {label}. " for label in distances)
        + "".join(f"{column.label}: {column.note} " for column in columns if column.unit == "share" and column.note)
        + f"Intervals: 95 %. {content['provenance']['device']}, {settings['precision']}"
        f"{', compiled' if settings['compile'] else ''}."
    )

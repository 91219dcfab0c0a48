"""Put the figures of a comparison into one table."""

import csv
import math
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from safetensors.torch import load_file

from bigain.benchmark.comparison import Comparison
from bigain.metrics.intervals import paired_difference
from bigain.results.store import read_json
from bigain.tasks.evaluation import RESULT_FILE

__all__ = ["COLUMNS", "assemble", "terminal_table", "write_csv"]

COLUMNS = (
    "name",
    "reducer",
    "images",
    "top1",
    "top1_low",
    "top1_high",
    "difference",
    "difference_low",
    "difference_high",
    "generated",
    "frechet",
    "features",
    "gflops",
    "ms",
    "ms_low",
    "ms_high",
    "evaluations_per_image",
)
"""Columns of `table.csv`: shares, not per cent; ms are per network evaluation."""

_ORIGIN = ("finished", "device", "git_revision", "python", "versions")


def assemble(plan: Comparison, folder: Path) -> dict[str, Any]:
    """Read every method's results and return the content of `comparison.json`.

    Args:
        plan: What was run.
        folder: Holds one folder a method.
    """
    baseline = next(iter(plan.reducers))
    right = {name: _correct(folder / name) for name in plan.reducers}
    methods = []
    for name, reducer in plan.reducers.items():
        row = {"name": name, "reducer": repr(reducer), **_figures(folder / name)}
        if name != baseline:
            difference = paired_difference(right[name], right[baseline])
            row |= {
                "difference": difference.value,
                "difference_low": difference.low,
                "difference_high": difference.high,
            }
        methods.append({**dict.fromkeys(("difference", "difference_low", "difference_high")), **row})
    first = read_json(folder / baseline / "classification" / RESULT_FILE)
    generation = read_json(folder / baseline / "generation" / RESULT_FILE)["settings"]
    settings = {
        key: first["settings"][key] for key in ("trials", "keeps", "loss", "seed", "source", "weights", "precision")
    }
    return {
        "title": plan.title,
        "baseline": baseline,
        "classes": list(plan.backbone.classes),
        "methods": methods,
        "settings": {
            **settings,
            **{key: generation[key] for key in ("steps", "guidance", "first_seed", "reference")},
            "compile": plan.compile,
        },
        "provenance": {"command": first["command"], **{key: first[key] for key in _ORIGIN}},
    }


def _correct(place: Path) -> torch.Tensor:
    held = load_file(place / "classification" / "errors.safetensors")
    return held["prediction"] == held["label"]


def _figures(place: Path) -> dict[str, Any]:
    classified = read_json(place / "classification" / RESULT_FILE)["summary"]
    generated = read_json(place / "generation" / RESULT_FILE)["summary"]
    cost = read_json(place / "cost.json")
    latency = cost["latency"]
    return {
        **{key: classified[key] for key in ("images", "top1", "top1_low", "top1_high", "evaluations_per_image")},
        **{key: generated[key] for key in ("generated", "frechet", "features")},
        "gflops": cost["flops"] / 1e9,
        "ms": latency["median"],
        "ms_low": latency["low"],
        "ms_high": latency["high"],
        "rows": latency["rows"],
        "timings": latency["repeats"],
        "sites": cost["sites"],
    }


def write_csv(path: Path, content: dict[str, Any]) -> None:
    """Write one row a method."""
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        rows.writeheader()
        rows.writerows(content["methods"])


def terminal_table(content: dict[str, Any]) -> Table:
    """Lay the table out for a terminal."""
    methods = content["methods"]
    label = methods[0]["features"]
    short = "FID" if label == "FID" else "Fréchet\ndistance"
    # Two lines a row keep the table within the 80 columns of a plain terminal, with no figure cut.
    heads = (
        "top-1 %\n95 % interval",
        f"paired to\n{content['baseline']}",
        short,
        "GFLOPs",
        "ms per\neval",
        "evals",
    )
    table = Table(
        title=content["title"],
        caption=_caption(content, label),
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("method", overflow="fold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in methods:
        table.add_row(
            row["name"],
            f"{100 * row['top1']:.1f}\n{100 * row['top1_low']:.1f} to {100 * row['top1_high']:.1f}",
            _difference(row),
            f"{row['frechet']:.2f}",
            f"{row['gflops']:.2f}",
            f"{row['ms']:.3g}",
            f"{row['evaluations_per_image']:g}",
        )
    return table


def _difference(row: dict[str, Any]) -> str:
    if row["difference"] is None or math.isnan(row["difference_low"]):
        return "-"
    low, high = 100 * row["difference_low"], 100 * row["difference_high"]
    return f"{100 * row['difference']:+.1f}\n{low:+.1f} to {high:+.1f}"


def _caption(content: dict[str, Any], label: str) -> str:
    row, settings = content["methods"][0], content["settings"]
    return (
        f"{row['images']} images, {settings['trials'][-1]} timesteps; {row['generated']} generated, "
        f"{settings['steps']} steps, guidance {settings['guidance']:g}. Distance: {label}. "
        f"{content['provenance']['device']}, {settings['precision']}"
        f"{', compiled' if settings['compile'] else ''}."
    )

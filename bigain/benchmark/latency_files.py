"""Measured latency in files: JSON with every single time, a CSV table, and a picture."""

import csv
from pathlib import Path
from typing import Any

from bigain.benchmark.break_even import break_even, curves_of
from bigain.benchmark.latency import LatencyTable, SizeLatency, ratio_to
from bigain.benchmark.latency_picture import draw_speed_ups
from bigain.benchmark.latency_table import IN_WORDS
from bigain.benchmark.timed_cases import Measured
from bigain.profiling.latency import quartiles
from bigain.results.files import whole_folder, write_result
from bigain.results.provenance import device_name, provenance

__all__ = ["as_json", "write_latency"]

_COLUMNS = (
    "shape", "rows", "channels", "heads", "tokens", "mode", "name", "kind", "ms", "ratio", "ratio_low", "ratio_high",
    "pairs", "flops", "flops_ratio", "memory", "compile_seconds", "graphs", "graph_breaks", "failure",
)  # fmt: skip


def write_latency(place: Path, content: LatencyTable, replace: bool = False) -> None:
    """Write JSON to a path that ends in .json, else a folder with JSON, CSV and pictures; whole or not at all.

    Args:
        place: The file or folder.
        content: What was measured.
        replace: Whether the place may hold what was measured before.
    """
    if place.suffix == ".json":
        write_result(place, as_json(content))
        return
    with whole_folder(place, replace) as folder:
        write_result(folder / "latency.json", as_json(content))
        _write_csv(folder / "latency.csv", content)
        for mode, curves in curves_of(content).items():
            below = (
                f"Speed-up over no reduction, the median of {content.settings['repeats']} rounds; {IN_WORDS[mode]}; "
                f"{device_name(content.device)}"
            )
            title = content.title.replace(" with random weights", "")
            draw_speed_ups(folder / f"speed_up_{mode}.png", curves, title, below)


def as_json(content: LatencyTable) -> dict[str, Any]:
    """Return settings, figures, every single time and provenance."""
    return {
        "kind": "latency",
        "title": content.title,
        "settings": dict(content.settings),
        "sizes": [_size(size) for size in content.sizes],
        "break_even_tokens": {
            mode: {curve.name: break_even(curve.tokens, curve.ratios) for curve in curves}
            for mode, curves in curves_of(content).items()
        },
        **provenance(content.device),
    }


def _size(size: SizeLatency) -> dict[str, Any]:
    return {
        "title": size.title,
        "shape": list(size.shape),
        "rows": size.rows,
        "channels": size.channels,
        "heads": size.heads,
        "tokens": size.tokens,
        "share": size.share,
        "modes": {mode: [_row(row, rows[0]) for row in rows] for mode, rows in size.modes.items()},
    }


def _row(row: Measured, first: Measured) -> dict[str, Any]:
    found, compilation, case = ratio_to(row, first), row.compilation, row.case
    return {
        "name": case.name,
        "kind": case.kind,
        "settings": case.settings,
        "ms": quartiles(row.times)[1] if row.times else None,
        "ratio": found and found.median,
        "ratio_low": found and found.low,
        "ratio_high": found and found.high,
        "pairs": found.pairs if found else 0,
        "flops": case.flops,
        "flops_ratio": case.flops / first.case.flops if case.flops is not None and first.case.flops else None,
        "memory": row.memory,
        "compile_seconds": compilation and compilation.seconds,
        "graphs": compilation and compilation.graphs,
        "graph_breaks": compilation and compilation.breaks,
        "failure": row.failure,
        "times_ms": list(row.times),
    }


def _write_csv(file: Path, content: LatencyTable) -> None:
    with file.open("w", newline="") as target:
        table = csv.DictWriter(target, _COLUMNS, extrasaction="ignore")
        table.writeheader()
        for size in content.sizes:
            about = _size(size)
            about["shape"] = "x".join(map(str, size.shape))
            for mode, rows in about["modes"].items():
                for row in rows:
                    table.writerow(about | row | {"mode": mode})

"""Measured latency as a table on the terminal, and as JSON."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bigain.benchmark.latency_settings import LatencyTable, MethodLatency
from bigain.errors import DataError, SettingError
from bigain.results.provenance import provenance
from bigain.results.store import write_json

__all__ = ["as_json", "check_absent", "notes_below", "terminal_table", "write_latency"]

_SMALL_SHARE = 0.16
"""Parts that hold less of a network's operations than this leave a compiled network nearly as slow as it was.

Measured on an H100 (assets/latency_h100_run): with 15.4 %, Stable Diffusion 2.0 was at most 7 % faster;
with 18.0 %, DiT-XL/2 11 %.
"""


def terminal_table(content: LatencyTable) -> Table:
    """Lay the methods out, one a row."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("method", overflow="fold")
    for column in ("ms", "quartiles", "x none", "FLOPs", "GiB", "compiling"):
        table.add_column(column, justify="right")
    for row in content.methods:
        low, median, high = row.passes.quartiles
        memory, compilation = row.passes.memory, row.passes.compilation
        table.add_row(
            row.name,
            f"{median:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{median / content.baseline:.3f}",
            f"{row.flops / content.methods[0].flops:.3f}",
            "-" if memory is None else f"{memory / 2**30:.2f}",
            "-" if compilation is None else f"{compilation.seconds:.0f} s",
        )
    return table


def notes_below(content: LatencyTable) -> str:
    """Say what the columns hold, and how far the clock can be trusted."""
    settings = content.settings
    graphs = max((row.passes.compilation.graphs for row in content.methods if row.passes.compilation), default=0)
    lines = [
        f"ms: one pass of {_several(settings['rows'], 'row')}, the median of {settings['repeats']}.",
        f"1.000 is the mean of the first and the last line, which differ by {100 * content.drift:+.1f} %: smaller "
        "differences are noise.",
        f"Compiled with {settings['backend']}, each to {_several(graphs, 'graph')}." if graphs else "Not compiled.",
        "GiB: peak of the timed passes, weights included." if content.methods[0].passes.memory is not None else "",
        _gain_note(content.share),
    ]
    return " ".join(line for line in lines if line)


def _gain_note(share: float) -> str:
    """Warn of parts in which no reducer can gain much; an empty text where there is nothing to warn of."""
    if not 0 < share < _SMALL_SHARE:
        return ""
    return (
        f"Little to gain: the parts taken hold {share:.1%} of the operations, and with fused attention a compiled "
        "network whose parts held 15 % was at most 7 % faster (Stable Diffusion 2.0 on an H100). Larger inputs, or "
        "more blocks and parts, make it more."
    )


def check_absent(file: Path | None) -> None:
    """Refuse a file that exists or could not be written, before any work.

    Raises:
        SettingError: There is something already.
        DataError: Its folder is missing.
    """
    if file is None:
        return
    if file.exists():
        raise SettingError(f"{file} exists already: choose another --output, or remove it. Nothing was overwritten.")
    if not file.parent.is_dir():
        raise DataError(f"--output {file} cannot be written: there is no folder {file.parent}.")


def as_json(content: LatencyTable) -> dict[str, Any]:
    """Return settings, figures, every single time, and where they come from."""
    return {
        "kind": "latency",
        "settings": dict(content.settings),
        "baseline_ms": content.baseline,
        "drift": content.drift,
        "methods": [_row(content, row) for row in content.methods],
        **provenance(content.device),
    }


def write_latency(file: Path, content: LatencyTable) -> None:
    """Write `as_json`."""
    write_json(file, as_json(content))


def _row(content: LatencyTable, row: MethodLatency) -> dict[str, Any]:
    low, median, high = row.passes.quartiles
    compilation = row.passes.compilation
    return {
        "name": row.name,
        "reducer": row.reducer,
        "ms": median,
        "ms_low": low,
        "ms_high": high,
        "ratio": median / content.baseline,
        "flops": row.flops,
        "flops_ratio": row.flops / content.methods[0].flops,
        "memory": row.passes.memory,
        "compile_seconds": compilation and compilation.seconds,
        "graphs": compilation and compilation.graphs,
        "graph_breaks": compilation and compilation.breaks,
        "times_ms": list(row.passes.times),
    }


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"

"""Measured latency as tables on the terminal, and in words."""

from collections.abc import Sequence
from itertools import chain

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bigain.benchmark.break_even import curves_of, in_words
from bigain.benchmark.latency import LatencyTable, ratio_to
from bigain.benchmark.timed_cases import Kind, Measured
from bigain.profiling.latency import quartiles
from bigain.profiling.modes import Mode

__all__ = ["IN_WORDS", "notes_below", "terminal_tables"]

_SMALL_SHARE = 0.16
"""If the parts taken have a smaller share of the operations, a compiled network stays nearly as slow as it was.

Measured on an H100 (assets/latency_h100_run): with 8.3 %, SDXL was at most 4 % faster; with 15.4 %, Stable
Diffusion 2.0 6 %.
"""

IN_WORDS: dict[Mode, str] = {
    "eager": "as the network is, launched by the host",
    "compiled": "compiled, launched by the host",
    "graphs": "compiled, replayed as a CUDA graph",
}


def terminal_tables(content: LatencyTable) -> list[tuple[str, Table]]:
    """Lay out a table for each size and mode, with its title, and one for the pieces if they were timed."""
    tables = []
    for size in content.sizes:
        for mode, rows in size.modes.items():
            title = f"{size.title}, {IN_WORDS[mode]}"
            tables.append((title, _table(rows, ("none", "method", "floor", "peer", "baseline"))))
            if any(row.case.kind == "part" for row in rows):
                tables.append((f"{size.title}, pieces alone", _table(rows, ("part",))))
    return tables


def _table(rows: Sequence[Measured], kinds: tuple[Kind, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("piece" if kinds == ("part",) else "method", overflow="fold")
    for column in ("ms", f"x {rows[0].case.name}", "95 %", "FLOPs", "GiB", "compile"):
        table.add_column(column, justify="right")
    for row in rows:
        if row.case.kind in kinds:
            table.add_row(*_cells(row, rows[0]))
    return table


def _cells(row: Measured, first: Measured) -> list[str]:
    found, compilation, flops = ratio_to(row, first), row.compilation, row.case.flops
    left = None if flops is None or not first.case.flops else flops / first.case.flops
    seconds = "-" if compilation is None else f"{compilation.seconds:.0f} s{'*' if compilation.breaks else ''}"
    if row.failure is not None:
        return [row.case.name, *_cut(row.failure), "-" if left is None else f"{left:.3f}", "-", "-"]
    return [
        row.case.name,
        _milliseconds(quartiles(row.times)[1]),
        "-" if found is None else f"{found.median:.3f}",
        "-" if found is None or found.low is None else f"{found.low:.3f}–{found.high:.3f}",
        "-" if left is None else f"{left:.3f}",
        "-" if row.memory is None else f"{row.memory / 2**30:.2f}",
        seconds,
    ]


def _milliseconds(value: float) -> str:
    """Write about four digits."""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def _cut(failure: str) -> list[str]:
    """Put a failure where the times would be; a long one goes to the notes."""
    return ["-", "-", failure if len(failure) < 15 else "see below"]


def notes_below(content: LatencyTable) -> list[str]:
    """Return sentences on what the columns mean, and on what the figures say and do not say."""
    rows = [*chain.from_iterable(chain.from_iterable(size.modes.values()) for size in content.sizes)]
    settings = content.settings
    lines = [
        f"ms: one pass, the median of {settings['repeats']}; every method runs once in each round.",
        f"x {rows[0].case.name}: the median of the rounds' ratios; 95 %: its interval, which rests on no distribution.",
        "GiB: the most that one pass has in use beside weights and inputs, in a pass of its own."
        if any(row.memory is not None for row in rows)
        else "",
        "* compiled to several graphs, since one was not possible."
        if any(row.compilation and row.compilation.breaks for row in rows)
        else "",
        *sorted({f"{row.case.name}: {row.failure}." for row in rows if row.failure and len(row.failure) >= 15}),
        *_where_methods_pay(content),
        *_against_written_out(content),
        _gain_note(content),
        *content.notes,
    ]
    return [line for line in lines if line]


def _where_methods_pay(content: LatencyTable) -> list[str]:
    """Say from how many tokens on each method pays, in a sweep."""
    found = curves_of(content)
    suffix = {mode: "" if len(found) == 1 else f" ({IN_WORDS[mode]})" for mode in found}
    return [
        f"{in_words(curve)[:-1]}{suffix[mode]}."
        for mode, curves in found.items()
        for curve in curves
        if curve.kind in ("method", "peer")
    ]


def _against_written_out(content: LatencyTable) -> list[str]:
    """Compare a method with no reduction, both with attention written out, as in the paper."""
    lines = []
    for size in content.sizes:
        for rows in size.modes.values():
            written = [row for row in rows if row.case.kind == "baseline"]
            for other in written[1:]:
                found = ratio_to(other, written[0])
                if found is not None:
                    name = other.case.name.removeprefix("baseline: ")
                    lines.append(
                        f"{size.title}: where both write their attention out, {name}, is {1 / found.median:.2f} times "
                        "as fast as no reduction."
                    )
    return lines


def _gain_note(content: LatencyTable) -> str:
    """Warn if no reducer can gain much in the parts taken; empty otherwise."""
    shares = [size.share for size in content.sizes if size.share]
    if not shares or not 0 < max(shares) < _SMALL_SHARE:
        return ""
    return (
        f"Little to gain: the parts taken hold {max(shares):.1%} of the operations, and with fused attention a "
        "compiled network whose parts held 15 % was at most 6 % faster (Stable Diffusion 2.0 on an H100). Larger "
        "inputs, or more blocks and parts, make it more."
    )

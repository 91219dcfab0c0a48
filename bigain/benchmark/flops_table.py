"""Counted operations as a table, on the terminal and as CSV."""

import csv
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bigain.benchmark.flops_settings import FlopsTable
from bigain.errors import DataError

__all__ = ["COLUMNS", "check_writable", "parts_note", "terminal_table", "write_csv"]

COLUMNS = ("method", "reducer", "flops", "baseline", "saved", "tokens_before", "tokens_after", "parts", "share")
"""Columns of the CSV: operations, shares (not per cent), tokens at the first part taken."""


def terminal_table(content: FlopsTable) -> Table:
    """Lay the methods out, one in each row."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("method", overflow="fold")
    for column in ("GFLOPs", "saved", "tokens at the first part"):
        table.add_column(column, justify="right")
    for method in content.methods:
        count, first = method.count, method.count.parts[0]
        table.add_row(
            method.name, f"{count.total / 1e9:.2f}", f"{100 * count.saved:.2f} %", f"{first.before} -> {first.after}"
        )
    return table


def parts_note(content: FlopsTable) -> str:
    """Say what share of the model's operations the placement takes."""
    count = content.methods[0].count
    return (
        f"The {len(count.parts)} parts taken hold {100 * count.share:.1f} % of the {count.baseline / 1e9:.2f} GFLOPs "
        "without reduction; no reducer there can save more."
    )


def check_writable(file: Path | None) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        DataError: Its folder is missing, or it is a folder itself.
    """
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        reason = "that is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise DataError(f"--csv {file} cannot be written: {reason}.")


def write_csv(file: Path, content: FlopsTable) -> None:
    """Write one row for each method; see `COLUMNS`."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for method in content.methods:
            count, first = method.count, method.count.parts[0]
            tokens = (first.before, first.after)
            saved = (count.total, count.baseline, count.saved)
            writer.writerow([method.name, method.reducer, *saved, *tokens, len(count.parts), count.share])

"""The tables of docs/performance.md and README are those of the files that the measuring command wrote."""

import csv
from pathlib import Path

import pytest

from bigain.assets import asset

ROOT = Path(__file__).resolve().parents[1]
PAGE, README = ((ROOT / name).read_text() for name in ("docs/performance.md", "README.md"))


def cells_of(text, name):
    """The cells of a marked table, without its head."""
    shown = text.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in shown]


def rows_of(name):
    with asset(name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("pixels", ["512", "2048"])
def test_a_table_of_the_page_is_that_of_its_file(pixels):
    rows = rows_of(f"latency_sd2_h100_run/{pixels}.csv")
    for cells, row in zip(cells_of(PAGE, pixels), rows, strict=True):
        gain, low, high = (1 / float(row[key]) for key in ("ratio", "ratio_high", "ratio_low"))
        assert cells[0] == row["name"]
        assert cells[1] == f"{float(row['ms']):.2f}"
        assert cells[2] == f"{gain:.2f} ({low:.2f} to {high:.2f})"
        assert cells[3] == (f"{float(row['flops_ratio']):.2f}" if row["flops_ratio"] else "")
        assert cells[4] == f"{float(row['memory']) / 2**30:.2f}"


def test_the_table_of_the_readme_is_that_of_its_files():
    found = {
        pixels: {row["name"]: row for row in rows_of(f"latency_sd2_h100_run/{pixels}.csv")} for pixels in (512, 2048)
    }
    names = ["lgtm", "abm", "iekvd", "peer: tomesd", "floor: sliced 70%"]
    for cells, name in zip(cells_of(README, "clock"), names, strict=True):
        assert cells[1:] == [f"{1 / float(found[pixels][name]['ratio']):.2f}" for pixels in (512, 2048)]


def test_the_table_from_before_is_that_of_its_card():
    rows = [row for row in rows_of("latency_h100_run/table.csv") if row["network"] != "sd2"]
    networks = dict.fromkeys(row["network"] for row in rows)
    for cells, network in zip(cells_of(PAGE, "latency"), networks, strict=True):
        mine = {row["method"]: row for row in rows if row["network"] == network}
        assert cells[1] == mine["none"]["ms"]
        for cell, method in zip(cells[2:6], ["lgtm", "cached", "abm", "iekvd"], strict=True):
            assert cell == f"{float(mine[method]['ratio']):.2f} ({float(mine[method]['flops']):.2f})"

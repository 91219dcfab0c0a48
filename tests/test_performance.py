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


NAMES = [
    "sd2_512",
    "sd2_768",
    "sd2_1024",
    "sd2_2048",
    "sdxl_1024",
    "sd3_1024",
    "dit_xl_2_512",
    "flux1_1024",
    "vit_l_16_384",
    "dit_xl_2_512_eager",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_of_the_page_is_that_of_its_file(name):
    rows = rows_of(f"latency_h100_run/{name}.csv")
    for cells, row in zip(cells_of(PAGE, name), rows, strict=True):
        gain, low, high = (1 / float(row[key]) for key in ("ratio", "ratio_high", "ratio_low"))
        assert cells[0] == row["name"]
        assert cells[1] == f"{float(row['ms']):.2f}"
        assert cells[2] == f"{gain:.2f} ({low:.2f} to {high:.2f})"
        assert cells[3] == (f"{float(row['flops_ratio']):.2f}" if row["flops_ratio"] else "")
        assert cells[4] == f"{float(row['memory']) / 2**30:.2f}"


def test_the_table_of_the_readme_is_that_of_its_files():
    sizes = (512, 1024, 2048)
    found = {pixels: {row["name"]: row for row in rows_of(f"latency_h100_run/sd2_{pixels}.csv")} for pixels in sizes}
    names = ["lgtm", "abm", "iekvd", "peer: tomesd", "floor: sliced 70%"]
    for cells, name in zip(cells_of(README, "clock"), names, strict=True):
        assert cells[1:] == [f"{1 / float(found[pixels][name]['ratio']):.2f}" for pixels in sizes]


def test_the_sentence_below_it_is_true_of_the_other_networks():
    gains = [
        next(1 / float(row["ratio"]) for row in rows_of(f"latency_h100_run/{name}.csv") if row["name"] == "lgtm")
        for name in ("flux1_1024", "dit_xl_2_512", "sdxl_1024")
    ]
    flux = "FLUX.1 at 1024 pixels (50 % in 33 blocks) is {:.2f} times as fast, "
    sentence = flux + "DiT-XL/2 at 512 {:.2f} and SDXL at 1024 {:.2f}."
    assert sentence.format(*gains) in " ".join(README.split())
